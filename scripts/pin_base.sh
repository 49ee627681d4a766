#!/bin/sh
# pin_base.sh [DOCKERFILE]: writes into it the digest that its base image's tag has today.
# Needs docker (with buildx) and the registry that it is configured for.
set -eu
file=${1:-Dockerfile}
tag=$(sed -n 's/^ARG BASE=\([^@]*\).*/\1/p' "$file")
digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$tag") || digest=
case $digest in
sha256:*[!0-9a-f]* | sha256:) digest= ;;
sha256:*) ;;
*) digest= ;;
esac
if [ ${#digest} -ne 71 ]; then
  echo "No digest of $tag: docker buildx or its registry did not answer" >&2
  exit 1
fi
sed -i -e '/^# Pinned on /d' \
  -e "s|^ARG BASE=.*|# Pinned on $(date -u +%Y-%m-%d).\nARG BASE=$tag@$digest|" "$file"
echo "$tag@$digest"
