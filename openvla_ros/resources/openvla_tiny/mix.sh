# sh mix.sh NAME RECORDING[=BAGS] ...
# recordings/NAME gets a link to every bag of these recordings, or to the first BAGS of one.
set -eu
out="recordings/$1"
shift
rm -rf "$out"
mkdir -p "$out"
for wanted in "$@"; do
  name="${wanted%%=*}"
  case "$wanted" in *=*) most="${wanted#*=}" ;; *) most=1000000 ;; esac
  for bag in $(ls -d "recordings/$name"/*/ | head -n "$most"); do
    ln -s "$(realpath "$bag")" "$out/${name}_$(basename "$bag")"
  done
done
