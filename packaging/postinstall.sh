#!/bin/sh
# Runs after the package was unpacked, by dpkg and rpm alike. A machine without systemd has a user to make by hand.
set -e
if command -v systemd-sysusers >/dev/null; then
  systemd-sysusers /usr/lib/sysusers.d/envoy-mcp-auth.conf
  chgrp envoy-mcp-auth /etc/envoy-mcp-auth && chmod 0750 /etc/envoy-mcp-auth
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  # An upgrade: the new program takes over. A first installation starts nothing.
  systemctl try-restart envoy-mcp-auth.service || true
fi
