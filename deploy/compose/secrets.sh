#!/bin/sh
# Make the secrets of compose.yaml once: secrets.sh [FOLDER]. What is there already stays.
# The files are readable for the containers' users, who are numbers; their folder is yours alone.
set -eu
folder=${1:-"$(dirname "$0")/secrets"}
umask 022
mkdir -p "$folder"
chmod 0700 "$folder"
word() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
keep() { [ -s "$folder/$1" ] || printf '%s\n' "$2" > "$folder/$1"; }
keep postgres-password "$(word)"
keep redis-password "$(word)"
keep prefect-auth "admin:$(word)"
keep prefect-database-url "postgresql+asyncpg://prefect:$(cat "$folder/postgres-password")@postgres:5432/prefect"
keep prefect-redis-url "redis://default:$(cat "$folder/redis-password")@redis:6379/0"
for site in alpha beta gamma; do
  keep "$site-passphrase" "$(word)"
  keep "$site-auth" "$site:$(word)"
  keep "$site-htpasswd" "$(sed 's/:/:{PLAIN}/' "$folder/$site-auth")"
done
