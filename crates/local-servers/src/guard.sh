# Runs one server, and stops it as soon as the process that started it is gone, however that ended.
#
# Arguments: STOP_SIGNAL GRACE_S LOG PROGRAM [ARGUMENT...]
# Standard input is a pipe whose other end only the starter holds: end of file means "stop the server", whether the
# starter closed it on purpose or was killed. The first line on standard output is the server's process id.
# Standard error is not for messages: it is a file that says "still at work here" for as long as it is held open.
stop_signal=$1
grace_s=$2
log=$3
shift 3

# The starter's terminal must not end the guard before the server. Traps, unlike ignored signals, are not inherited.
trap : HUP INT TERM

exec 3<&0
"$@" </dev/null >>"$log" 2>&1 3<&- &
server=$!
echo "$server"
exec >/dev/null

stop_server() {
    # A paused process would not see the signal; its children may be paused as well (PostgreSQL's sessions are).
    # shellcheck disable=SC2046 # one word per process id is meant
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
    # Ignored, what it runs ignores them as well: a group with a frozen server in it is hung up when the starter ends.
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
