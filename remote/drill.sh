# Has the machine fail, as far as those can see who use its VIPs. It follows drain.sh.

# crash: keepalived ends without a word to its peers, and nobody answers at the VIPs
# any more. The timer mends it when nobody else does.
crash() {
	o=$(connections) || exit 1
	systemctl stop "$unit.timer" 2>/dev/null
	systemd-run --quiet --collect --unit="$unit" --on-active="${within}s" --timer-property=AccuracySec=100ms \
		/bin/sh -c "rm -f '$k'; systemctl restart '$u'" >&2 || die 'start the timer that mends'
	umask 077
	# Started anew, by systemd or by the timer, keepalived takes no VIP while this is there.
	mkdir -p "${k%/*}" && echo "$until $word" >"$k.new" && sync "$k.new" && mv "$k.new" "$k" || die "write $k"
	systemctl kill -s KILL "$u" >&2 || die "kill $u"
	for v in $vips; do
		ip -o addr show to "$v" | while read -r _ dev _ a _; do ip addr del "$a" dev "$dev" >&2 || die "take $a away"; done
	done
	if holds; then die "the machine still has one of $vips"; fi
	[ -z "$o" ] || echo "$o"
}

# mend: it takes part again.
mend() {
	systemctl stop "$unit.timer" 2>/dev/null
	# What came to a VIP that is not here any more leads nowhere.
	[ -z "$filter" ] || holds || ss -K -Htn state established "$filter" >/dev/null 2>&1
	case $(systemctl show -p ActiveState --value "$u") in active) ;; *) systemctl start "$u" >&2 || die "systemctl start $u" ;; esac
	back
}
