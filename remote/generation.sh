# Keeps what a set of changes will touch, and arms the timer that puts it back.
# State is a file that is renamed, so of the timer and of who confirms one wins:
# armed -> generations/N/confirmed, or armed -> generations/N/reverting.

# quiet stops the timer, and waits for a revert that has begun.
quiet() {
	systemctl stop "$unit.timer" 2>/dev/null
	i=0
	while case $(systemctl show -p ActiveState --value "$unit.service") in active | activating | deactivating) ;; *) false ;; esac; do
		i=$((i + 1))
		[ $i -lt 300 ] || die "$unit.service does not end"
		sleep 0.2
	done
}
timer() {
	systemd-run --quiet --collect --unit="$unit" --on-active="${within}s" --timer-property=AccuracySec=100ms \
		/bin/sh "$g/generations/$n/revert" timer >&2 || { rm -f "$g/armed"; die 'start the timer that reverts'; }
}
keep_file() { if [ -f "$2" ]; then cp -p "$2" "$d/file-$1" || die "keep $2"; fi; }
keep_setting() { cat "$2" >"$d/setting-$1" || die "keep $2"; }
keep_service() {
	u=$2 c=$3 k=$4
	a=$(show ActiveState) e=$(show UnitFileState)
	if [ "$6" ]; then a=inactive; fi
	echo "$a" >"$d/active-$1" && echo "$e" >"$d/enabled-$1" || die "keep the state of $u"
	if [ -f "$k" ]; then
		cp -p "$k" "$d/marker-$1" || die "keep $k"
		if [ -f "$c" ] && [ "$(cat "$k")" = "$(identity)" ]; then : >"$d/loaded-$1"; fi
	fi
}
prune() {
	for x in "$g"/generations/*; do
		i=${x##*/}
		case $i in '' | *[!0-9]*) rm -rf "$x" ;; *) [ "$i" -gt $((n - keep)) ] || rm -rf "$x" ;; esac
	done
}
arm() {
	quiet
	umask 077
	mkdir -p "$g/generations" || die "make $g"
	was=0
	if [ -f "$g/armed" ]; then was=$(cat "$g/armed"); fi
	[ "$was" = "$pending" ] || [ "$was" != 0 ] || die "generation $pending was armed when this was planned" 76
	[ "$was" = "$pending" ] || { [ "$token" ] && [ "$(cat "$g/generations/$was/token")" = "$token" ]; } || die "generation $was is armed now: another run changes this machine"
	if [ "$was" != 0 ]; then
		n=$was
		printf %s "$undoing" >>"$g/generations/$n/undoing" || die 'keep how to go back'
		timer
		answer
		return
	fi
	n=0
	if [ -f "$g/generation" ]; then n=$(cat "$g/generation"); fi
	n=$((n + 1))
	d=$g/generations/new
	rm -rf "$d" && mkdir "$d" || die "make $d"
	files keep_file
	settings keep_setting
	services keep_service
	printf %s "$undoing" >"$d/undoing" && echo "$proven" >"$d/proven" && { printf 'n=%s\n' "$n"; timeout 60 cat; } >"$d/revert" && echo "$token" >"$d/token" || die "write $d"
	rm -rf "$g/generations/$n"
	sync "$d"/* && mv "$d" "$g/generations/$n" && echo "$n" >"$g/generation.new" &&
		sync "$g/generation.new" && mv "$g/generation.new" "$g/generation" || die "write $g"
	# Armed before the timer runs: else it could find nothing to do.
	if [ "$within" = 0 ]; then
		: >"$g/generations/$n/confirmed"
	else
		echo "$n" >"$g/armed.new" && sync "$g/armed.new" && mv "$g/armed.new" "$g/armed" || die "write $g/armed"
		timer
	fi
	prune
	answer
}
answer() { echo "$n $(cat "$g/generations/$n/proven")"; }
confirm() {
	mv "$g/armed" "$g/generations/$n/confirmed" 2>/dev/null || [ -f "$g/generations/$n/confirmed" ] || die "generation $n is not armed any more" 76
	sync "$g"
	quiet
	prune
}
