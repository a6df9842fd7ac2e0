rm -rf recordings/rounds; mkdir -p recordings/rounds
first() { ls -d recordings/$1/*/ | head -n $2; }
for bag in $(first reach_near 16) $(first pick_near 12) $(first paths 239) $(first reach_rounds 999) $(first pick_rounds 999); do
  ln -s "$(realpath "$bag")" "recordings/rounds/$(basename "$(dirname "$bag")")_$(basename "$bag")"
done
