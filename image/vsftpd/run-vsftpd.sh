#!/bin/busybox sh
# Starts vsftpd with the environment contract of the fauria/vsftpd image: same
# names, defaults, virtual user, paths and owner (uid 14, gid 50) of the files.
#
#   FTP_USER, FTP_PASS       the account; default admin and a random password, which is printed
#   PASV_ENABLE, PASV_ADDRESS, PASV_ADDR_RESOLVE, PASV_MIN_PORT, PASV_MAX_PORT,
#   PASV_PROMISCUOUS, PORT_PROMISCUOUS, FILE_OPEN_MODE, LOCAL_UMASK,
#   XFERLOG_STD_FORMAT       as vsftpd.conf(5) has them
#   LOG_STDOUT               anything: transfers are logged to the container's log
#   REVERSE_LOOKUP_ENABLE    taken and not used: Debian's vsftpd never looks names up
#
# and beyond that contract, all optional:
#
#   LISTEN_PORT, MAX_CLIENTS, MAX_PER_IP, IDLE_SESSION_TIMEOUT, DATA_CONNECTION_TIMEOUT (seconds), BANNER
#   SSL_ENABLE               YES: explicit FTPS with /etc/vsftpd-settings/tls.crt (the server's certificate, then
#                            intermediate ones) and tls.key, both PEM; data must resume the session of control
#   FORCE_SSL                NO: who does not ask for TLS is let in too; default YES
#   TLS_MIN_VERSION          1.2, the default, or 1.3
#   TLS_MAX_VERSION          the same by default. Clients that do not read what TLS 1.3 sends at the end of an upload,
#                            as lftp, break uploads with it
#
# Each of these may also be a file of that name in /etc/vsftpd-settings, which wins.
# When that directory is a volume of a Secret or ConfigMap that changes, new sessions
# get the new settings and the running ones go on with theirs; LISTEN_PORT and
# LOG_STDOUT are read at the start only. The files REQUEST, ACCOUNT_REVISION,
# SETTINGS_REVISION and TLS_REVISION are not read but repeated in the log, when the
# rest is in force.
#
# Unlike the original it refuses values that would change the meaning of other
# settings, ends at once on SIGTERM, changes the owner of the account's home
# directory only, not of every file in it at every start, and keeps a passive port
# whose client does not come for 20 seconds, not for a minute.
set -eu

settings=/etc/vsftpd-settings

: "${FTP_USER:=**String**}" "${FTP_PASS:=**Random**}" "${LOG_STDOUT:=**Boolean**}"
: "${PASV_ENABLE:=YES}" "${PASV_ADDRESS:=**IPv4**}" "${PASV_ADDR_RESOLVE:=NO}"
: "${PASV_MIN_PORT:=21100}" "${PASV_MAX_PORT:=21110}" "${PASV_PROMISCUOUS:=NO}" "${PORT_PROMISCUOUS:=NO}"
: "${FILE_OPEN_MODE:=0666}" "${LOCAL_UMASK:=077}" "${XFERLOG_STD_FORMAT:=NO}"
: "${LISTEN_PORT:=21}" "${MAX_CLIENTS:=0}" "${MAX_PER_IP:=0}" "${BANNER:=}"
: "${IDLE_SESSION_TIMEOUT:=300}" "${DATA_CONNECTION_TIMEOUT:=300}"
: "${SSL_ENABLE:=NO}" "${FORCE_SSL:=YES}" "${TLS_MIN_VERSION:=1.2}" "${TLS_MAX_VERSION:=}"

refuse() {
	echo "run-vsftpd: $1: $2" >&2
	exit 78
}

# taken NAME... takes what stands in files over the environment.
taken() {
	for name; do
		[ ! -f "$settings/$name" ] || eval "$name=\$(busybox cat \"\$settings/\$name\")"
	done
}

taken LISTEN_PORT LOG_STDOUT

# version names what is in $settings now: the kubelet changes all of it at once.
version() { busybox readlink "$settings/..data" || true; }

# said repeats by what ftpdeploy knows which settings are in force.
said() {
	REQUEST='' ACCOUNT_REVISION='' SETTINGS_REVISION='' TLS_REVISION=''
	taken REQUEST ACCOUNT_REVISION SETTINGS_REVISION TLS_REVISION
	echo "run-vsftpd: settings $1: request=$REQUEST account=$ACCOUNT_REVISION settings=$SETTINGS_REVISION tls=$TLS_REVISION"
}

# encrypt writes what each session reads when it begins: vsftpd itself loads a
# certificate once and for all if its main configuration has ssl_enable. A session that
# just begins may have read the former tls.conf, so the pair that this names is
# removed only the next time.
encrypt() {
	for old in /etc/vsftpd/pair.*; do
		busybox grep -qF "$old" /etc/vsftpd/tls.conf 2>/dev/null || busybox rm -f "$old"
	done
	busybox rm -f /etc/vsftpd/new.tls
	case $SSL_ENABLE in
	[Yy]*)
		pair=$(busybox mktemp /etc/vsftpd/pair.XXXXXX)
		busybox cat "$settings/tls.crt" - "$settings/tls.key" >"$pair" <<END

END
		cat >/etc/vsftpd/new.openssl <<END
openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = limits
[limits]
MinProtocol = TLSv$TLS_MIN_VERSION
MaxProtocol = TLSv$TLS_MAX_VERSION
END
		busybox mv /etc/vsftpd/new.openssl /etc/vsftpd/openssl.cnf
		cat >/etc/vsftpd/new.tls <<END
ssl_enable=YES
rsa_cert_file=$pair
ssl_ciphers=HIGH
ssl_request_cert=NO
require_ssl_reuse=YES
force_local_logins_ssl=$FORCE_SSL
force_local_data_ssl=$FORCE_SSL
END
		;;
	*) : >/etc/vsftpd/new.tls ;;
	esac
	busybox mv /etc/vsftpd/new.tls /etc/vsftpd/tls.conf
}

# configure checks the settings and writes what vsftpd reads: the accounts at each
# login, the rest when it starts and at SIGHUP. In a subshell, so that a file that
# is gone leaves what the environment says.
configure() (
	set -e
	taken FTP_USER FTP_PASS PASV_ENABLE PASV_ADDRESS PASV_ADDR_RESOLVE PASV_MIN_PORT PASV_MAX_PORT PASV_PROMISCUOUS \
		PORT_PROMISCUOUS FILE_OPEN_MODE LOCAL_UMASK XFERLOG_STD_FORMAT MAX_CLIENTS MAX_PER_IP IDLE_SESSION_TIMEOUT \
		DATA_CONNECTION_TIMEOUT BANNER SSL_ENABLE FORCE_SSL TLS_MIN_VERSION TLS_MAX_VERSION
	case $FTP_USER in
	.* | -* | *[!A-Za-z0-9._@-]*) refuse FTP_USER "must be letters, digits and . _ - @, and start with a letter or a digit" ;;
	esac
	case $FTP_PASS in *'
'*) refuse FTP_PASS "must be one line" ;;
	esac
	case $PASV_ADDRESS in
	'**IPv4**') PASV_ADDRESS=$(busybox ip route | busybox awk '/default/ { print $3; exit }') ;; # the original's own choice
	esac
	for name in PASV_ENABLE PASV_ADDR_RESOLVE PASV_PROMISCUOUS PORT_PROMISCUOUS XFERLOG_STD_FORMAT SSL_ENABLE FORCE_SSL; do
		eval "value=\$$name"
		case $value in YES | NO | Yes | No | yes | no) ;; *) refuse $name "must be YES or NO" ;; esac
	done
	for name in PASV_MIN_PORT PASV_MAX_PORT FILE_OPEN_MODE LOCAL_UMASK LISTEN_PORT MAX_CLIENTS MAX_PER_IP IDLE_SESSION_TIMEOUT DATA_CONNECTION_TIMEOUT; do
		eval "value=\$$name"
		case $value in '' | *[!0-9]*) refuse $name "must be a number" ;; esac
	done
	case $PASV_ADDRESS in *[!A-Za-z0-9.-]*) refuse PASV_ADDRESS "must be an address or a name" ;; esac
	case $BANNER in *'
'*) refuse BANNER "must be one line" ;; esac
	: "${TLS_MAX_VERSION:=$TLS_MIN_VERSION}"
	case $TLS_MIN_VERSION-$TLS_MAX_VERSION in 1.2-1.2 | 1.2-1.3 | 1.3-1.3) ;; *) refuse TLS_MIN_VERSION "and TLS_MAX_VERSION must be 1.2 or 1.3" ;; esac
	case $SSL_ENABLE in [Yy]*)
		[ -s "$settings/tls.crt" ] && [ -s "$settings/tls.key" ] || refuse SSL_ENABLE "needs $settings/tls.crt and tls.key"
		;;
	esac

	umask 077
	busybox mkdir -p /etc/vsftpd /var/run/vsftpd/empty /var/log/vsftpd /var/ftp "/home/vsftpd/$FTP_USER"
	busybox chmod 755 /var/run/vsftpd /var/run/vsftpd/empty /var/log/vsftpd /var/ftp /home/vsftpd "/home/vsftpd/$FTP_USER"
	busybox chown 14:50 "/home/vsftpd/$FTP_USER"

	# db_load reads a backslash as the start of an escape.
	escaped=$(printf '%s' "$FTP_PASS" | busybox sed 's/\\/\\\\/g')
	busybox rm -f /etc/vsftpd/new_users.db
	printf '%s\n%s\n' "$FTP_USER" "$escaped" | /usr/bin/db5.3_load -T -t hash /etc/vsftpd/new_users.db
	busybox mv /etc/vsftpd/new_users.db /etc/vsftpd/virtual_users.db

	{
		cat <<END
background=NO
listen=YES
listen_port=$LISTEN_PORT
anonymous_enable=NO
local_enable=YES
guest_enable=YES
guest_username=ftp
virtual_use_local_privs=YES
write_enable=YES
pam_service_name=vsftpd_virtual
user_sub_token=\$USER
local_root=/home/vsftpd/\$USER
chroot_local_user=YES
allow_writeable_chroot=YES
hide_ids=YES
secure_chroot_dir=/var/run/vsftpd/empty
port_enable=YES
connect_from_port_20=YES
ftp_data_port=20
pasv_enable=$PASV_ENABLE
pasv_address=$PASV_ADDRESS
pasv_addr_resolve=$PASV_ADDR_RESOLVE
pasv_min_port=$PASV_MIN_PORT
pasv_max_port=$PASV_MAX_PORT
pasv_promiscuous=$PASV_PROMISCUOUS
port_promiscuous=$PORT_PROMISCUOUS
file_open_mode=$FILE_OPEN_MODE
local_umask=$LOCAL_UMASK
xferlog_enable=YES
xferlog_file=/var/log/vsftpd/xferlog
xferlog_std_format=$XFERLOG_STD_FORMAT
vsftpd_log_file=/var/log/vsftpd/vsftpd.log
max_clients=$MAX_CLIENTS
max_per_ip=$MAX_PER_IP
idle_session_timeout=$IDLE_SESSION_TIMEOUT
data_connection_timeout=$DATA_CONNECTION_TIMEOUT
accept_timeout=20
END
		[ -z "$BANNER" ] || echo "ftpd_banner=$BANNER"
		# A pod may neither make namespaces nor load seccomp filters; it is the sandbox itself.
		echo isolate=NO
		echo isolate_network=NO
		echo seccomp_sandbox=NO
	} >/etc/vsftpd/new.conf
	busybox mv /etc/vsftpd/new.conf /etc/vsftpd/vsftpd.conf
	encrypt
	echo "run-vsftpd: user $FTP_USER, control port $LISTEN_PORT, passive $PASV_ADDRESS:$PASV_MIN_PORT-$PASV_MAX_PORT"
)

case $FTP_USER in '**String**') FTP_USER=admin ;; esac
case $FTP_PASS in
'**Random**')
	if [ ! -f "$settings/FTP_PASS" ]; then
		FTP_PASS=$(busybox tr -dc A-Za-z0-9 </dev/urandom | busybox head -c 16)
		echo "run-vsftpd: password of $FTP_USER: $FTP_PASS"
	fi
	;;
esac
seen=$(version)
configure

case $LOG_STDOUT in
'**Boolean**') ;;
*) # a session's own standard output is its client's socket
	busybox ln -sf /proc/1/fd/1 /var/log/vsftpd/vsftpd.log
	busybox ln -sf /proc/1/fd/1 /var/log/vsftpd/xferlog
	;;
esac

trap 'exit 0' TERM INT
# vsftpd must not be PID 1: it dies of SIGSEGV when it reaps a process that it
# did not start. It reports a bad configuration on descriptor 0.
VSFTPD_LOAD_CONF=/etc/vsftpd/tls.conf OPENSSL_CONF=/etc/vsftpd/openssl.cnf /usr/sbin/vsftpd /etc/vsftpd/vsftpd.conf <&1 &
server=$!
said taken
while [ "$seen" ] && kill -0 $server 2>/dev/null; do
	busybox sleep 1 &
	wait $! || true
	now=$(version)
	[ "$now" != "$seen" ] || continue
	seen=$now
	set +e # in a condition, configure's own -e would be void
	configure
	status=$?
	set -e
	case $status in
	0) kill -HUP $server && said taken ;;
	*) said refused ;; # it goes on with the former ones
	esac
done
wait $server
