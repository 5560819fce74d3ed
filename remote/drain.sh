# Keeps the machine from its VIPs by the file $k, and gives back those that it has.
die() { echo "$*" >&2; exit 1; }
# The kernel is asked, and not HAProxy: it knows the connections of a worker that a
# reload has left behind too.
connections() {
	[ "$filter" ] || return 0 # it has no VIP
	v=$(ss -Htn state established "$filter" 2>&1) || die "ss: $v"
	[ -z "$v" ] || echo "$v" | while read -r _ _ l p _; do echo "$l $p"; done
}
holds() {
	a=" $(ip -br addr | tr '\n' ' ')" || die 'ip addr'
	for v in $vips; do
		case $a in *" $v/"*) return 0 ;; esac
	done
	return 1
}
leave() {
	n=0
	while o=$(connections) || exit 1; [ "$o" ] && [ -z "$cut" ]; do
		n=$((n + 1))
		[ $n -lt 20 ] || { printf 'busy\n%s\n' "$o"; exit 0; }
		sleep 0.1
	done
	umask 077
	mkdir -p "${k%/*}" && echo "$until $word" >"$k.new" && sync "$k.new" && mv "$k.new" "$k" || die "write $k"
	# To stop is to announce priority 0: a peer takes over at once, and not when the
	# check has failed often enough. It comes up again to watch, and not to take.
	systemctl restart "$u" >&2 || { rm -f "$k"; die "systemctl restart $u"; }
	n=0
	while holds; do
		n=$((n + 1))
		[ $n -lt 50 ] || die "$u has left, and the machine still has one of $vips"
		sleep 0.1
	done
	# What is open now is cut: no packet of a client comes here any more.
	o=$(connections) || exit 1
	echo left
	if [ "$o" ]; then
		echo "$o"
		# Else HAProxy keeps them until its timeouts. Not every kernel can do it.
		ss -K -Htn state established "$filter" >/dev/null 2>&1
	fi
	return 0
}
back() {
	rm -f "$k"
	# One that has a VIP by now is where it should be.
	if holds; then return 0; fi
	began=$(date +%s)
	systemctl restart "$u" >&2 || die "systemctl restart $u"
	n=0
	until case $(journalctl -q -o cat -u "$u" --since "@$began" 2>/dev/null) in *'Entering BACKUP STATE'* | *'Entering MASTER STATE'*) ;; *) false ;; esac; do
		n=$((n + 1))
		[ $n -lt 25 ] || break # a version with other words
		sleep 0.2
	done
}
