#!/bin/sh
# dpkg gives "remove" or "upgrade", rpm how many versions stay: 0 is a removal.
set -e
case "$1" in
remove | 0) [ ! -d /run/systemd/system ] || systemctl disable --now envoy-mcp-auth.service || true ;;
esac
