#!/bin/bash
# Starts the server in a container, and initializes an empty volume before, with the variables of MariaDB's own image
# (https://mariadb.com/docs/server/server-management/automated-mariadb-deployment-and-administration/docker-and-mariadb/mariadb-server-docker-official-image-environment-variables).
set -eo pipefail

DATA=/var/lib/mysql
# On the same volume as the data, so that they can be renamed.
INITIALIZING=$DATA/.initializing
INITIALIZED=$DATA/.initialized
INIT_FILES=/docker-entrypoint-initdb.d
SOCKET=/run/mysqld/mysqld.sock
READY_SECONDS=300

log() {
    echo "docker-entrypoint.sh: $*" >&2
}

fail() {
    log "$*"
    exit 1
}

# setting NAME [MYSQL_NAME]: exports MARIADB_NAME, which may also be set as MYSQL_NAME, or as the content of a file that
# MARIADB_NAME_FILE or MYSQL_NAME_FILE names.
setting() {
    local variable file value
    for variable in "MARIADB_$1" "${2:-MYSQL_$1}"; do
        file=${variable}_FILE
        if [ -n "${!variable}" ]; then
            value=${!variable}
        elif [ -n "${!file}" ]; then
            [ -r "${!file}" ] || fail "cannot read ${!file}, which $file names"
            value=$(< "${!file}")
        fi
        [ -z "$value" ] || break
    done
    export "MARIADB_$1=$value"
}

read_settings() {
    local name
    for name in MARIADB_ROOT_PASSWORD_HASH MARIADB_PASSWORD_HASH MARIADB_REPLICATION_USER MARIADB_MASTER_HOST; do
        [ -z "${!name}" ] || fail "this image does not support $name; use one that is made of MariaDB's own"
    done
    setting ROOT_PASSWORD
    setting RANDOM_ROOT_PASSWORD
    setting ALLOW_EMPTY_ROOT_PASSWORD MYSQL_ALLOW_EMPTY_PASSWORD
    setting ROOT_HOST
    setting DATABASE
    setting USER
    setting PASSWORD
    setting INITDB_SKIP_TZINFO
    if [ -z "$MARIADB_ROOT_PASSWORD$MARIADB_RANDOM_ROOT_PASSWORD$MARIADB_ALLOW_EMPTY_ROOT_PASSWORD" ]; then
        fail "$DATA is empty, and no password of root is set: set MARIADB_ROOT_PASSWORD, MARIADB_ROOT_PASSWORD_FILE," \
            "MARIADB_RANDOM_ROOT_PASSWORD or MARIADB_ALLOW_EMPTY_ROOT_PASSWORD"
    fi
    if [ -n "$MARIADB_USER" ] && [ -z "$MARIADB_PASSWORD" ]; then
        fail "MARIADB_USER is set, but neither MARIADB_PASSWORD nor MARIADB_PASSWORD_FILE"
    fi
    if [ -n "$MARIADB_RANDOM_ROOT_PASSWORD" ]; then
        MARIADB_ROOT_PASSWORD=$(head -c 24 /dev/urandom | base64)
        log "GENERATED ROOT PASSWORD: $MARIADB_ROOT_PASSWORD"
    fi
}

# A string of SQL, whatever is in it.
quoted() {
    local text=${1//\\/\\\\}
    printf "'%s'" "${text//\'/\\\'}"
}

# A name of SQL, whatever is in it.
quoted_name() {
    printf '`%s`' "${1//\`/\`\`}"
}

# Runs SQL as root. Scripts in /docker-entrypoint-initdb.d call it by this name.
docker_process_sql() {
    MYSQL_PWD=$root_password mariadb --no-defaults --protocol=socket --socket="$SOCKET" --user=root --binary-mode \
        ${database:+"--database=$database"} "$@"
}

# The server for the initialization listens on no port.
start_server() {
    "$@" --datadir="$INITIALIZING" --skip-networking --socket="$SOCKET" --wsrep-on=OFF --skip-slave-start &
    server=$!
    local left=$READY_SECONDS
    until docker_process_sql --execute='DO 0' 2> /dev/null; do
        kill -0 "$server" 2> /dev/null || fail "the server for the initialization has ended; its messages are above"
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "the server for the initialization is not ready after $READY_SECONDS seconds"
        sleep 1
    done
}

stop_server() {
    kill "$server"
    wait "$server" || fail "the server for the initialization ended with status $?"
    server=
}

on_signal() {
    [ -z "$server" ] || { kill "$server" && wait "$server"; } || :
    exit 143
}

accounts_and_database() {
    local host=${MARIADB_ROOT_HOST:-%} root_identified healthcheck_password user
    # As quoted() needs it. The accounts of this server are not for its replicas.
    echo "SET SESSION sql_mode = '', sql_log_bin = 0;"
    echo "SET @drop = (SELECT CONCAT('DROP USER ', GROUP_CONCAT(QUOTE(User), '@', QUOTE(Host))) FROM mysql.user
            WHERE User IN ('', 'root') AND Host <> 'localhost');
        EXECUTE IMMEDIATE IFNULL(@drop, 'DO 0');"
    root_identified="IDENTIFIED BY $(quoted "$MARIADB_ROOT_PASSWORD")"
    echo "ALTER USER root@localhost $root_identified;"
    if [ "$host" != localhost ]; then
        echo "CREATE USER root@$(quoted "$host") $root_identified;"
        echo "GRANT ALL ON *.* TO root@$(quoted "$host") WITH GRANT OPTION;"
    fi
    # An account without privileges, for healthcheck.sh.
    healthcheck_password=$(head -c 24 /dev/urandom | base64)
    (
        umask 077
        printf '[mariadb-client]\nuser=healthcheck\npassword=%s\nprotocol=socket\nsocket=%s\n' "$healthcheck_password" "$SOCKET" \
            > "$INITIALIZING/.my-healthcheck.cnf"
    )
    echo "CREATE USER healthcheck@localhost IDENTIFIED BY $(quoted "$healthcheck_password");"
    echo "SET SESSION sql_log_bin = 1;"
    if [ -n "$MARIADB_DATABASE" ]; then
        echo "CREATE DATABASE IF NOT EXISTS $(quoted_name "$MARIADB_DATABASE");"
    fi
    if [ -n "$MARIADB_USER" ]; then
        user="$(quoted "$MARIADB_USER")@'%'"
        echo "CREATE USER $user IDENTIFIED BY $(quoted "$MARIADB_PASSWORD");"
        [ -z "$MARIADB_DATABASE" ] || echo "GRANT ALL ON $(quoted_name "${MARIADB_DATABASE//_/\\_}").* TO $user;"
    fi
}

run_init_file() {
    case $1 in
        *.sh)
            log "running $1"
            # shellcheck disable=SC1090 # whatever is there
            if [ -x "$1" ]; then "$1"; else . "$1"; fi
            ;;
        *.sql) log "running $1" && docker_process_sql < "$1" ;;
        *.sql.gz) log "running $1" && gzip -dc "$1" | docker_process_sql ;;
        *.sql.xz) log "running $1" && xz -dc "$1" | docker_process_sql ;;
        *.sql.zst) log "running $1" && zstd -dc "$1" | docker_process_sql ;;
        *) log "ignoring $1" ;;
    esac
}

# In a folder of its own: an initialization that was interrupted is made anew, and nothing else is removed.
initialize() {
    rm -rf "$INITIALIZING"
    if [ -n "$(find "$DATA" -mindepth 1 -maxdepth 1 ! -name lost+found -print -quit)" ]; then
        fail "$DATA has files, but no database 'mysql'; restore the whole backup, or mount an empty volume"
    fi
    log "initializing $DATA"
    mkdir -m 700 "$INITIALIZING"
    # With the server's own plugins and options, so that it is encrypted.
    mariadb-install-db --datadir="$INITIALIZING" --auth-root-authentication-method=normal --skip-test-db \
        --cross-bootstrap "${@:2}" > /dev/null || fail "mariadb-install-db failed; its messages are above"
    start_server "$@"
    if [ -z "$MARIADB_INITDB_SKIP_TZINFO" ]; then
        mariadb-tzinfo-to-sql --skip-write-binlog /usr/share/zoneinfo 2> /dev/null | docker_process_sql --database=mysql
    fi
    accounts_and_database | docker_process_sql
    root_password=$MARIADB_ROOT_PASSWORD
    database=$MARIADB_DATABASE
    local file
    for file in "$INIT_FILES"/*; do
        [ ! -e "$file" ] || run_init_file "$file"
    done
    stop_server
    mv "$INITIALIZING" "$INITIALIZED"
}

# Also what an interruption left to be moved.
move_into_place() {
    find "$INITIALIZED" -mindepth 1 -maxdepth 1 -exec mv -t "$DATA" {} +
    rmdir "$INITIALIZED"
    log "initialized $DATA"
}

# Options alone are the server's.
if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
    set -- mariadbd "$@"
fi

if [ "$1" = mariadbd ] || [ "$1" = mysqld ]; then
    trap on_signal TERM INT
    if [ ! -d "$DATA/mysql" ] && [ ! -d "$INITIALIZED" ]; then
        read_settings
        initialize "$@"
    fi
    [ ! -d "$INITIALIZED" ] || move_into_place
    trap - TERM INT
    # A user of SQL with the privilege FILE may read the server's environment.
    unset MARIADB_ROOT_PASSWORD MARIADB_PASSWORD MYSQL_ROOT_PASSWORD MYSQL_PASSWORD
fi
exec "$@"
