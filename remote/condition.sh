# Reads what tells why a box does not serve, and writes nothing. Each answer stands
# below a line "@kind NAME". What cannot be asked here is left out.
has() { command -v "$1" >/dev/null 2>&1; }

echo "@now $(date +%s)"

# haproxy SECONDS: what it has logged of sessions that a timeout ended, and complained of
haproxy() {
	v=$(journalctl -q --no-pager -o short-unix -u haproxy.service --since "-$1s" 2>/dev/null) || return 0
	echo @cut
	printf '%s\n' "$v" | grep -E ' [cs]D [0-9/]+ ' | tail -n 40
	echo @complaints
	printf '%s\n' "$v" | grep -E '\[(ALERT|emerg)\]|ALERT|cannot bind|Starting proxy|Loading failure' | tail -n 5
}

# keepalived: the last state of each instance, and the end of its log
keepalived() {
	v=$(journalctl -q --no-pager -o short-unix -u keepalived.service -n 200 2>/dev/null) || return 0
	printf '@keepalived\n%s\n' "$v"
}

# check COMMAND VIP: does what keepalived asks succeed?
check() {
	"$1" "$2" >/dev/null 2>&1 </dev/null
	echo "@check $2 $?"
}

# disk DIR...: file systems and how full they are, in KiB and inodes
disk() {
	for d; do
		[ -d "$d" ] || continue
		k=$(df -P -k "$d" 2>/dev/null | tail -n 1) && i=$(df -P -i "$d" 2>/dev/null | tail -n 1) || continue
		printf '@disk %s\n%s\n%s\n' "$d" "$k" "$i"
	done
}

# filters: what the packet filters refuse
filters() {
	echo @filters
	if has nft; then nft list ruleset 2>/dev/null; fi | grep -E 'dport.*(drop|reject)' | head -n 20
	if has iptables-save; then iptables-save 2>/dev/null; fi | grep -E 'dport.*(DROP|REJECT)' | head -n 20
}
