#!/bin/sh
# Whether the server in this container answers: healthcheck.sh [--connect] [--innodb_initialized]. Without an
# option, both.
set -eu

ask() {
    mariadb --defaults-file=/var/lib/mysql/.my-healthcheck.cnf --batch --skip-column-names --execute="$1"
}

[ $# -gt 0 ] || set -- --connect --innodb_initialized
for check; do
    case $check in
        # The server for the initialization does not count.
        --connect) [ "$(ask 'SELECT @@skip_networking')" = 0 ] ;;
        --innodb_initialized)
            [ "$(ask "SELECT support FROM information_schema.ENGINES WHERE engine = 'InnoDB'")" = DEFAULT ]
            ;;
        *)
            echo "healthcheck.sh: unknown option $check; known are --connect and --innodb_initialized" >&2
            exit 2
            ;;
    esac || exit
done
