#!/bin/sh
# Write a site's proxy into FOLDER: render.sh SITE LISTEN PREFECT FOLDER
# PREFECT_AUTH_FILE names a file with Prefect's credential (user:password), SITE_AUTH_FILE one with
# the site's own, in the form of htpasswd. Without them the proxy asks for none and sends none.
set -eu
umask 077
site=$1 listen=$2 prefect=$3 folder=$4
here=$(cd "$(dirname "$0")" && pwd)
case $site in
  '' | *[!a-z0-9-]*) echo "render.sh: $site is no site label" >&2; exit 2 ;;
esac
mkdir -p "$folder"
sed -e "s|@SITE@|$site|g" -e "s|@LISTEN@|$listen|g" -e "s|@PREFECT@|$prefect|g" \
  -e "s|@FOLDER@|$folder|g" "$here/nginx.conf" > "$folder/nginx.conf"
[ -e "$folder/tls.conf" ] || : > "$folder/tls.conf"
if [ -n "${SITE_AUTH_FILE:-}" ]; then
  printf 'auth_basic "fedflow";\nauth_basic_user_file %s;\n' "$SITE_AUTH_FILE"
fi > "$folder/site.conf"
if [ -n "${PREFECT_AUTH_FILE:-}" ]; then
  credential=$(tr -d '\r\n' < "$PREFECT_AUTH_FILE" | base64 | tr -d '\n')
  printf 'proxy_set_header Authorization "Basic %s";\n' "$credential"
else
  printf 'proxy_set_header Authorization "";\n'
fi > "$folder/prefect-auth.conf"
