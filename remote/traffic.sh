# Reads what clients have open, and how what was open has ended. Each answer
# stands below a line "@kind".
die() { echo "$*" >&2; exit 1; }

echo "@now $(date +%s)"

# sockets FIRST LAST
sockets() {
	v=$(ss -Htan "( sport >= :$1 and sport <= :$2 )" 2>&1) || die "ss: $v"
	printf '@sockets\n%s\n' "$v"
}

addresses() {
	v=$(ip -br addr) || die 'ip addr'
	printf '@addresses\n%s\n' "$v"
}

# since SECONDS: the sessions that HAProxy has logged the end of, with how it came,
# and the VRRP instances that became master
since() {
	v=$(journalctl -q --no-pager -o cat -u haproxy.service --since "@$1" 2>&1) || die "journalctl: $v"
	echo @ended
	printf '%s\n' "$v" | while read -r client _ _ _ timers _ how _; do
		case $timers:$how in */*/*:??) echo "${client#<*>} $how" ;; esac
	done
	v=$(journalctl -q --no-pager -o short-unix -u keepalived.service --since "@$1" 2>&1) || die "journalctl: $v"
	echo @masters
	printf '%s\n' "$v" | while read -r at _ _ instance text; do
		case $text in 'Entering MASTER STATE'*) echo "$at $instance" ;; esac
	done
}
