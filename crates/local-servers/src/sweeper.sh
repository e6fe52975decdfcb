# Removes a scratch folder once no process uses it any more.
#
# Argument: FOLDER. Standard input is a pipe whose other end is held by the starter and by the
# guards of the servers in the folder. End of file comes when all of them have ended.
trap '' HUP INT TERM # for what it runs as well
while read -r _; do :; done
rm -rf -- "$1"
