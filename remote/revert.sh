# Puts back what generation $n replaced: files, kernel settings, what the firewall
# was told, and the services that read them. The timer runs it, or ftpdeploy does.
PATH=$PATH:/usr/sbin:/sbin LC_ALL=C TZ=UTC0
export PATH LC_ALL TZ
umask 077
d=$g/generations/$n bad= spared=" $* "
fault() { echo "$1" >&2; bad=1; }
same() { [ -f "$1" ] && [ -f "$2" ] && [ "$(sha256sum <"$1")" = "$(sha256sum <"$2")" ]; }
# Nobody looks at a half of this; what hangs and holds the lock does not hold it up.
if [ "$1" = timer ]; then
	flock -o -w 2 -E 99 "$g" /bin/sh "$0" alone
	s=$?
	[ $s = 99 ] || exit $s
fi
# A connection that breaks does not break this off.
[ "$1" != now ] || trap '' HUP TERM PIPE
if ! mv "$g/armed" "$d/reverting" 2>/dev/null; then
	[ "$1" = now ] || exit 0
	if ! { [ "$(cat "$g/generation")" = "$n" ] && mv "$d/confirmed" "$d/reverting" 2>/dev/null; }; then
		i=0
		until [ -f "$d/reverted" ]; do
			[ ! -f "$d/failed" ] || die "generation $n was not put back: $(cat "$d/failed")"
			[ -f "$d/reverting" ] || die "generation $n is neither armed nor confirmed"
			i=$((i + 1))
			[ $i -lt 300 ] || die "generation $n was not put back within 60 s"
			sleep 0.2
		done
		exit 0
	fi
fi
rm -f "$d/failed"
back_file() {
	case $spared in *" $2 "*) return ;; esac
	if [ ! -f "$d/file-$1" ]; then
		if [ -f "$2" ]; then rm -f "$2" && touched="$touched|$2|" || fault "remove $2"; fi
		return
	fi
	if same "$d/file-$1" "$2" && [ "$(stat -c '%a %u %g' "$d/file-$1")" = "$(stat -c '%a %u %g' "$2")" ]; then return; fi
	t=${2%/*}/.${2##*/}.ftpdeploy.restored
	if mkdir -p "${2%/*}" && cp -p "$d/file-$1" "$t" && sync "$t" && mv -f "$t" "$2" && sync "${2%/*}"; then
		touched="$touched|$2|"
		if command -v restorecon >/dev/null; then restorecon "$2" >&2; fi
	else
		fault "put back $2"
	fi
}
back_setting() { cat "$d/setting-$1" >"$2" || fault "put back $2"; }
back_marker() { # NUMBER MARKER
	if [ -f "$d/marker-$1" ]; then cp -p "$d/marker-$1" "$2"; else rm -f "$2"; fi || fault "put back $2"
}
down() { # what did not run before
	u=$2
	[ "$(cat "$d/active-$1")" != active ] || return 0
	case $(show ActiveState) in inactive | failed) ;; *) systemctl stop "$u" >&2 || fault "stop $u" ;; esac
	back_marker "$1" "$4"
}
up() { # what ran before runs with what it had
	u=$2
	if [ "$(cat "$d/active-$1")" = active ]; then
		verb=start
		if [ "$(show ActiveState)" = active ]; then verb=reload; fi
		case $touched in *"|$3|"*) changed=1 ;; *) changed= ;; esac
		if [ $verb = start ] || [ "$changed" ] || ! same "$d/marker-$1" "$4"; then
			load "$2" "$3" "$4" "$5" $verb || fault "$verb $u"
			[ -f "$d/loaded-$1" ] || back_marker "$1" "$4"
		fi
	fi
	case "$(cat "$d/enabled-$1") $(show UnitFileState)" in
	'disabled enabled') systemctl disable "$u" >&2 || fault "disable $u" ;;
	'enabled disabled') systemctl enable "$u" >&2 || fault "enable $u" ;;
	esac
}
touched=
services_down down
files back_file
settings back_setting
# What it says of a rule that is not there does not matter.
sh "$d/undoing" >&2
services up
if [ "$bad" ]; then
	echo 'see the journal of this unit' >"$d/failed"
else
	date >"$d/reverted"
fi
sync "$d"
# Not from the timer's own service: it would wait for itself.
[ "$1" != now ] || systemctl stop "$unit.timer" 2>/dev/null
[ -z "$bad" ]
