# Removes a scratch folder once nobody works in it any more.
#
# Argument: FOLDER. Standard input is a pipe whose other ends are held by the starter and by the guards of the servers
# in the folder: end of file comes when all of them are gone.
trap '' HUP INT TERM # for what it runs as well
while read -r _; do :; done
rm -rf -- "$1"
