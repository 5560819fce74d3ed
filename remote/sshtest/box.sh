#!/bin/sh
# The programs of a Debian box, as far as ftpdeploy calls them, named by $0. $BOX
# holds their state, $BOX/root the box's files. haproxy is the real one; all else
# answers as the real programs do on Debian 12. What it was not told about it refuses.
me=${0##*/}
echo "$me $*" >>"$BOX/calls"
refuse() {
	echo "fake $me: not told about: $*" >&2
	exit 99
}

pid() { cat "$BOX/run/$1" 2>/dev/null; }
alive() {
	p=$(pid "$1") && { read -r s <"/proc/$p/stat"; } 2>/dev/null || return 1
	case ${s##*) } in Z*) return 1 ;; esac
}
start() {
	alive "$1" && return
	[ ! -f "$BOX/fail/$1" ] || { echo "Job for $1.service failed." >&2; exit 1; }
	case $1 in
	haproxy)
		: >"$BOX/log/$1"
		setsid /usr/sbin/haproxy -W -f "$BOX/root/etc/haproxy/haproxy.cfg" >>"$BOX/log/$1" 2>&1 </dev/null &
		;;
	keepalived)
		[ -s "$BOX/root/etc/keepalived/keepalived.conf" ] || return # ConditionFileNotEmpty
		setsid sleep 1000 >/dev/null 2>&1 </dev/null &
		;;
	esac
	echo $! >"$BOX/run/$1"
	[ "$1" = haproxy ] || return 0
	# It tells systemd when it is ready.
	n=0
	until grep -q 'Loading success' "$BOX/log/$1"; do
		n=$((n + 1))
		alive haproxy && [ $n -lt 10000 ] || { echo "Job for $1.service failed." >&2; exit 1; }
	done
}
stop() {
	if alive "$1"; then
		kill "$(pid "$1")"
		while alive "$1"; do :; done
	fi
	rm -f "$BOX/run/$1"
}
remove() {
	stop "$1"
	rm -f "$BOX/installed/$1" "$BOX/enabled/$1"
	[ "$1" != haproxy ] || rm -f "$BOX/root/etc/haproxy/haproxy.cfg"
}
install() {
	case $1 in
	haproxy) v=2.6.12-1+deb12u4 ;;
	keepalived) v=1:2.2.7-1+b2 ;;
	*) refuse "install $1" ;;
	esac
	[ ! -f "$BOX/installed/$1" ] || return 0
	echo "$v" >"$BOX/installed/$1"
	: >"$BOX/enabled/$1"
	if [ "$1" = haproxy ] && mkdir -p "$BOX/root/etc/haproxy" && [ ! -f "$BOX/root/etc/haproxy/haproxy.cfg" ]; then
		cp "$BOX/distribution.cfg" "$BOX/root/etc/haproxy/haproxy.cfg"
	fi
	start "$1"
}

case $me in
dpkg-query)
	[ "$1 $2 $#" = '-W -f 4' ] || refuse "$@"
	case $3 in
	'${db:Status-Status} ${Version}')
		[ -f "$BOX/installed/$4" ] || { echo "dpkg-query: no packages found matching $4" >&2; exit 1; }
		printf 'installed %s' "$(cat "$BOX/installed/$4")"
		;;
	'${Conffiles}\n')
		[ "$4" != haproxy ] || [ ! -f "$BOX/installed/haproxy" ] ||
			echo " $BOX/root/etc/haproxy/haproxy.cfg $(md5sum <"$BOX/distribution.cfg" | cut -d' ' -f1)"
		;;
	*) refuse "$@" ;;
	esac
	;;
apt-cache)
	[ "$5" = policy ] || refuse "$@"
	printf '%s:\n  Installed: (none)\n  Candidate: 2.6.12-1+deb12u4\n' "$6"
	;;
apt-get)
	verb=
	for w; do
		case $w in
		-o) skip=1; continue ;;
		-q | -y | --no-install-recommends | --allow-downgrades) continue ;;
		esac
		if [ "$skip" ]; then skip=; continue; fi
		case $verb in
		'') verb=$w ;;
		install) install "${w%%=*}" ;;
		purge) remove "$w" ;;
		*) refuse "$@" ;;
		esac
		case $verb in
		update)
			if [ -f "$BOX/locked" ]; then
				rm "$BOX/locked"
				echo 'E: Could not get lock /var/lib/apt/lists/lock. It is held by process 812 (apt-get)' >&2
				exit 100
			fi
			;;
		install | purge) ;;
		*) refuse "$@" ;;
		esac
	done
	;;
systemctl)
	verb=$1
	shift
	case $verb in
	show)
		[ "$1" = -p ] || refuse "$verb" "$@"
		what=$2
		shift 2
		if [ "$1" = --value ]; then
			u=${2%.service}
			case $what in
			MainPID) if alive "$u"; then pid "$u"; else echo 0; fi ;;
			ActiveState) if alive "$u"; then echo active; else echo inactive; fi ;;
			UnitFileState)
				if [ -f "$BOX/enabled/$u" ]; then echo enabled
				elif [ -f "$BOX/installed/$u" ]; then echo disabled
				else echo; fi
				;;
			*) refuse "$verb" "$@" ;;
			esac
			exit
		fi
		[ "$what" = Id,LoadState,ActiveState,UnitFileState ] || refuse "$verb" "$@"
		for u; do
			u=${u%.service}
			echo "Id=$u.service"
			if [ -f "$BOX/installed/$u" ]; then echo LoadState=loaded; else echo LoadState=not-found; fi
			if alive "$u"; then echo ActiveState=active; else echo ActiveState=inactive; fi
			if [ -f "$BOX/enabled/$u" ]; then echo UnitFileState=enabled
			elif [ -f "$BOX/installed/$u" ]; then echo UnitFileState=disabled
			else echo UnitFileState=; fi
			echo
		done
		;;
	start) start "${1%.service}" ;;
	kill)
		[ "$1 $2" = '-s KILL' ] || refuse "$verb" "$@"
		u=${3%.service}
		kill -KILL "$(pid "$u")"
		while alive "$u"; do :; done
		;;
	stop) stop "${1%.service}" ;;
	restart)
		u=${1%.service}
		stop "$u"
		start "$u"
		if [ "$u" = keepalived ]; then # all VIPs leave, and nobody contends for them here
			[ ! -f "$BOX/without" ] || cp "$BOX/without" "$BOX/addresses"
			echo 'Entering BACKUP STATE' >"$BOX/log/$u"
		fi
		;;
	reload)
		u=${1%.service}
		alive "$u" || { echo "$u.service is not active, cannot reload." >&2; exit 1; }
		: >"$BOX/log/$u" # journalctl is asked for what comes after
		case $u in
		haproxy) kill -USR2 "$(pid "$u")" ;;
		keepalived) [ -f "$BOX/fail/$u" ] || printf 'Reloading ...\nReloading\nReload complete\n' >>"$BOX/log/$u" ;;
		esac
		;;
	enable) for u; do : >"$BOX/enabled/${u%.service}"; done ;;
	disable)
		[ "$1" = --now ] || refuse "$verb" "$@"
		shift
		for u; do
			stop "${u%.service}"
			rm -f "$BOX/enabled/${u%.service}"
		done
		;;
	*) refuse "$verb" "$@" ;;
	esac
	;;
systemd-run)
	last=
	for w; do
		case $last:$w in -c:*) script=$BOX/mend; echo "$w" >"$script"; continue ;; esac
		last=$w
		case $w in
		--quiet | --collect | --timer-property=AccuracySec=100ms | /bin/sh | timer | -c) ;;
		--unit=*) u=${w#--unit=} ;;
		--on-active=*s) s=${w#--on-active=} s=${s%s} ;;
		/*/revert) script=$w ;;
		*) refuse "$@" ;;
		esac
	done
	! alive "$u" && ! alive "$u.timer" || { echo "Failed to start transient timer unit: Unit $u.timer was already loaded." >&2; exit 1; }
	[ ! -f "$BOX/fail/$me" ] || { echo "Failed to start transient timer unit." >&2; exit 1; }
	setsid sh -c 'trap "kill \$!; exit" TERM; sleep "$1" & wait; trap - TERM
		mv "$BOX/run/$3.timer" "$BOX/run/$3"; sh "$2" timer; rm -f "$BOX/run/$3"' sh "$s" "$script" "$u" >"$BOX/log/$u" 2>&1 </dev/null &
	echo $! >"$BOX/run/$u.timer"
	;;
journalctl)
	if [ "$1 $2 $3 $4 $5 $6 $7 $8 $9" = '-q --no-pager -b -r -n 1000 -o short-unix -u' ]; then
		shift 9
		cat "$BOX/journal/${1%.service}" 2>/dev/null # the newest first
		exit
	fi
	[ "$1 $2 $3 $4" = '-q -o cat -u' ] || refuse "$@"
	cat "$BOX/log/${5%.service}" 2>/dev/null
	;;
ip)
	case "$*" in
	'-br addr') cat "$BOX/addresses" ;;
	'-o addr show to '*)
		while read -r dev _ list; do
			for a in $list; do [ "${a%/*}" != "$5" ] || echo "2: $dev    inet $a scope global secondary $dev"; done
		done <"$BOX/addresses"
		;;
	'addr del '*) sed -i "s| $3||" "$BOX/addresses" ;;
	*) refuse "$@" ;;
	esac
	;;
nft)
	[ "$*" = 'list ruleset' ] || refuse "$@"
	cat "$BOX/ruleset"
	;;
*) refuse "$@" ;;
esac
