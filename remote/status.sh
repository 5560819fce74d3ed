# Reads what the services of a machine do. It follows facts.sh, and the daemon's.

# masters: when keepalived has taken a VIP since the machine booted, the newest first
masters() {
	v=$(journalctl -q --no-pager -b -r -n 1000 -o short-unix -u "$1" 2>&1) || die "journalctl: $v"
	echo @masters
	printf '%s\n' "$v" | while read -r at _ _ instance text; do
		case $text in 'Entering MASTER STATE'*) echo "$at $instance" ;; esac
	done
}

# statistics HOST PORT PATH: what HAProxy counts; nothing where it does not answer.
# bash opens the connection, as in keepalived's check.
statistics() {
	echo @statistics
	timeout 1 bash -c 'exec 3<>"/dev/tcp/$1/$2" && printf "GET %s HTTP/1.0\r\n\r\n" "$3" >&3 && cat <&3' bash "$@" 2>/dev/null
	return 0
}
