#!/usr/bin/env bash
# The whole of ftpdeploy in one go: boot the lab, apply the shipped blueprint
# from the jump host, and move a file through the VIP with a real FTP client
# that can reach nothing but the frontend network.
set -euo pipefail
cd "$(dirname "$0")/.."
export FTPLAB_DIR=${FTPLAB_DIR:-/run/ftplab}
lab=bin/ftplab
vip=203.0.113.15

say() { printf '\n== %s\n' "$*"; }

say "the lab: vCenter, Kubernetes, a jump host and a client, in namespaces of their own"
"$lab" up

say "jump: ftpdeploy apply -f blueprints/lab.ftp.hcl"
"$lab" exec jump -- "$PWD/bin/ftpdeploy" apply --yes -f "$PWD/blueprints/lab.ftp.hcl"

say "client: lftp puts a file through the VIP, lists it and gets it back"
# shellcheck disable=SC2016 # $LFTP_PASSWORD and the rest are the client's
"$lab" exec client -- bash -euc '
	vip=$1
	cd "$HOME"
	head -c 1048576 /dev/urandom >demo.bin
	export LFTP_PASSWORD=$FTPDEPLOY_VAR_ftp_password
	lftp --env-password -u partner "ftp://$vip" -e "
		set net:timeout 15; set net:max-retries 2; set cmd:fail-exit true; set xfer:clobber true
		put demo.bin; cls -l demo.bin; get demo.bin -o demo.back; rm demo.bin; bye"
	sha256sum demo.bin demo.back
	cmp demo.bin demo.back
	rm demo.bin demo.back
' demo "$vip"

say "done: a passive-FTP transfer went through the VIP $vip, and the file came back the same"
