#!/bin/sh
# Writes the users with the digests of their passwords, then becomes the server.
set -eu
umask 077
rules=/run/asympo/users.acl
cp /etc/asympo/broker/users.acl "$rules"
for password in /etc/asympo/passwords/*-password; do
    role=$(basename "$password" -password)
    digest=$(sha256sum <"$password" | cut -d ' ' -f 1)
    sed -i "s/@$role@/$digest/" "$rules"
done
server=$(command -v valkey-server || command -v redis-server)
exec "$server" /etc/asympo/broker/broker.conf --aclfile "$rules"
