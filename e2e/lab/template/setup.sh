#!/bin/sh
# Turns a minimal Debian with the packages of packages.txt into the template
# that the lab's VMs are made from. Runs inside it (chroot), without a network.
set -eu

# The account that a site's template comes with. The lab gives it its password
# when a VM is made; until then none fits.
useradd --create-home --shell /bin/bash --groups sudo ansible

systemctl --quiet enable ssh systemd-networkd
systemctl --quiet set-default multi-user.target
# What a machine that lives for minutes has no use for; it would only slow down its boot.
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	fstrim.timer motd-news.timer console-getty.service getty@.service systemd-logind.service

# What must be a machine's own is made at its first boot.
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id
: >/etc/machine-id
# An air-gapped site: nobody answers to DNS, so nobody is asked.
: >/etc/resolv.conf
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/* /var/log/*.log /var/log/apt
