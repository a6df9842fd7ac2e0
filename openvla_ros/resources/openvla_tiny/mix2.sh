rm -rf recordings/mixed; mkdir -p recordings/mixed
for bag in $(ls -d recordings/reach_moments/*/ | head -n 100) $(ls -d recordings/reach_near/*/ recordings/pick_near/*/ recordings/paths/*/); do
  ln -s "$(realpath "$bag")" "recordings/mixed/$(basename "$(dirname "$bag")")_$(basename "$bag")"
done

