# Reads what a host step compares, and writes nothing, not even a temporary file.
# It needs sh, coreutils, systemd and iproute2, and uses a package manager, a
# firewall and SELinux where they are. Each answer stands below a line "@kind NAME",
# as the command gave it. What cannot be told ends the script: it is never "absent".
die() { echo "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

clock() { v=$(date +%s) && echo "@clock $v" || die date; }

os() {
	[ -r /etc/os-release ] || die 'read /etc/os-release: not there'
	(. /etc/os-release && printf '@os\n%s\n%s\n%s\n%s\n' "$ID" "$ID_LIKE" "$VERSION_ID" "$PRETTY_NAME")
}

# package NAME
package() {
	echo "@package $1"
	if has dpkg-query; then
		v=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$1" 2>&1)
		case $?:$v in
		0:installed*) echo "${v#installed }"; return ;;
		0:* | 1:*) ;;
		*) die "dpkg-query $1: $v" ;;
		esac
		# Without its caches on disk apt writes nothing.
		has apt-cache && apt-cache -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= policy "$1" |
			while read -r k v; do [ "$k" != Candidate: ] || echo "candidate $v"; done
	elif has rpm; then
		v=$(rpm -q --qf '%{VERSION}-%{RELEASE}\n' "$1" 2>&1) && { echo "$v"; return; }
		case $v in *'is not installed'*) ;; *) die "rpm -q $1: $v" ;; esac
	else
		die 'neither dpkg-query nor rpm is there'
	fi
}

# units NAME...
units() {
	v=$(systemctl show -p Id,LoadState,ActiveState,UnitFileState "$@" 2>&1) || die "systemctl show: $v"
	printf '@units\n%s\n' "$v"
}

# setting NAME FILE
setting() {
	v=$(cat "$2") || die "read the kernel setting $1"
	printf '@setting %s\n%s\n' "$1" "$v"
}

# pristine PATH PACKAGE SHA256: is PATH as the package brought it?
pristine() {
	m=$(md5sum <"$1") || die "read $1"
	if has dpkg-query; then
		dpkg-query -W -f '${Conffiles}\n' "$2" 2>/dev/null
	else
		rpm -q --qf '[%{FILENAMES} %{FILEDIGESTS}\n]' "$2" 2>/dev/null
	fi | while read -r p d _; do
		case "$p $d" in "$1 ${m%% *}" | "$1 $3") echo pristine ;; esac
	done
}

# file PATH SHA256 PACKAGE: the content is told unless it is the one of SHA256
file() {
	echo "@file $1"
	[ -e "$1" ] || return 0
	[ -f "$1" ] || die "$1 is not a file"
	v=$(sha256sum <"$1") && s=$(stat -L -c '%a %U %G %i %y' "$1") || die "read $1"
	echo "${v%% *} $s"
	[ ! -h "$1" ] || echo "link $(readlink "$1")"
	[ "${v%% *}" != "$2" ] || return 0
	[ -z "$3" ] || pristine "$1" "$3" "${v%% *}"
	v=$(base64 "$1") || die "read $1"
	printf 'content\n%s\n' "$v"
}

# newest DIR: the name with the highest number
newest() {
	echo "@newest $1"
	[ -d "$1" ] || return 0
	v=$(ls -v "$1") || die "read $1"
	echo "$v" | tail -n1
}

addresses() {
	v=$(ip -br addr) || die 'ip addr'
	printf '@addresses\n%s\n' "$v"
}

# connections FIRST LAST: how many are open to these ports, by local address. The
# kernel is asked, and not HAProxy: it knows those of workers that a reload has
# left behind too, and nothing that is surely on a box can read HAProxy's socket.
connections() {
	v=$(ss -Htn state established "( sport >= :$1 and sport <= :$2 )" 2>&1) || die "ss: $v"
	echo "@connections $1 $2"
	[ -z "$v" ] || echo "$v" | while read -r _ _ l _; do echo "${l%:*}"; done | sort | uniq -c
}

firewall() {
	if has firewall-cmd && [ "$(firewall-cmd --state 2>&1)" = running ]; then
		d=$(firewall-cmd --get-default-zone) && v=$(firewall-cmd --get-active-zones) || die 'firewall-cmd --get-active-zones'
		printf '@zones %s\n%s\n' "$d" "$v"
		printf '%s\n%s\n' "$d" "$v" | while read -r z w; do
			case $z in '' | interfaces: | sources:) continue ;; esac
			echo "@zone $z"
			firewall-cmd --zone="$z" --list-all || die "firewall-cmd --zone=$z --list-all"
			echo "@permanent $z"
			firewall-cmd --permanent --zone="$z" --list-all || die "firewall-cmd --permanent --zone=$z --list-all"
		done || exit 1
	elif has nft; then
		v=$(nft list ruleset 2>&1) || die "nft list ruleset: $v"
		echo @nft
		echo "$v" | while read -r a b c d; do
			case "$a $b $c $d" in
			table*) t="$b $c" ;;
			chain*) n=$b i= ;;
			*'hook input'*'policy drop'*) echo "$t $n: policy drop" ;;
			*'hook input'*) i=1 ;;
			*drop* | *reject* | *jump* | *goto*) if [ "$i" ]; then echo "$t $n: $a $b $c $d"; i=; fi ;;
			esac
		done
	fi
}

# selinux BOOLEAN...
selinux() {
	has getenforce || return 0
	v=$(getenforce) || die getenforce
	printf '@selinux\n%s\n' "$v"
	[ "$v" = Disabled ] || getsebool "$@" || die "getsebool $*"
}
