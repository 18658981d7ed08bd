#!/bin/sh
# Sees to it that the tests can start a Docker Engine of their own. As root it installs Debian's docker.io,
# docker-registry and busybox-static when they are missing; nothing is started here and no engine of yours is touched.
set -eu
missing=
command -v dockerd >/dev/null 2>&1 || missing="$missing docker.io"
[ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 || missing="$missing busybox-static"
command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
command -v docker-registry >/dev/null 2>&1 || missing="$missing docker-registry"
command -v iptables >/dev/null 2>&1 || missing="$missing iptables"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "engine tests will be skipped: they need root and$missing (apt-get install$missing)" >&2
  exit 1
fi
echo "installing$missing for the engine tests .."
apt-get update -qq >/dev/null
# Without recommendations: no second container runtime, no kernel helpers. policy-rc.d is respected, nothing starts
# that an administrator forbade.
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
# Debian starts a registry of its own with the package; the tests want the program only.
case "$missing" in *docker-registry*)
  if [ -d /run/systemd/system ]; then systemctl disable --now docker-registry >/dev/null 2>&1 || true; fi ;;
esac
