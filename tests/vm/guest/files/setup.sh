#!/bin/bash
# Makes a node of the guest: what the payload brought is installed, and kubelet, DNS and the agent are started.
set -eu
install -m 755 /opt/guest/files/nodediag.sh /usr/local/bin/nodediag
cp /opt/guest/files/*.service /lib/systemd/system/
mkdir -p /opt/rootfs/bin /opt/rootfs/proc /opt/rootfs/dev /opt/rootfs/tmp /opt/rootfs/sys /var/lib/kubelet
cp /bin/busybox /opt/rootfs/bin/
for name in sh sleep true cat ls ps kill mkdir seq; do ln -sf busybox "/opt/rootfs/bin/$name"; done
systemctl daemon-reload
systemctl is-system-running --wait >/dev/null
systemctl enable --quiet kubelet
systemctl start kubelet dns nodediag reports
