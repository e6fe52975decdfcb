# Runs one server, and stops it as soon as the process that started it has ended, even by kill -9.
#
# Arguments: STOP_SIGNAL GRACE_S LOG PROGRAM [ARGUMENT...]
#
# Standard input is a pipe whose other end only the starter holds. End of file means "stop the
# server", whether the starter closed the pipe or was killed. The first line on standard output is
# the server's process id. Standard error is not for messages: it is the hold, an open file that
# shows that the folder is in use.
stop_signal=$1
grace_s=$2
log=$3
shift 3

# Signals from the starter's terminal must not end the guard before the server. These are traps,
# since the server would inherit ignored signals.
trap : HUP INT TERM

exec 3<&0
"$@" </dev/null >>"$log" 2>&1 3<&- &
server=$!
echo "$server"
exec >/dev/null

stop_server() {
    # A paused process would not receive the signal. Its children may be paused as well
    # (PostgreSQL's sessions).
    # shellcheck disable=SC2046 # one word per process id is intended
    kill -CONT "$server" $(cat "/proc/$server/task/"*/children 2>/dev/null) 2>/dev/null
    kill -"$stop_signal" "$server" 2>/dev/null
    tenths=0
    while [ "$tenths" -lt $((grace_s * 10)) ] && kill -0 "$server" 2>/dev/null; do
        sleep 0.1
        tenths=$((tenths + 1))
    done
    kill -KILL "$server" 2>/dev/null
}

(
    # Ignored signals are inherited, so the commands of this subshell ignore them, too. SIGHUP does
    # arrive: when the starter ends, the kernel sends it to a process group with a stopped server.
    trap '' HUP INT TERM
    read -r _ <&3
    stop_server
) &
watcher=$!
exec 3<&-

wait "$server"
status=$?
while kill -0 "$server" 2>/dev/null; do # a trapped signal ends a wait early
    wait "$server"
    status=$?
done
kill -KILL "$watcher" 2>/dev/null
exit "$status"
