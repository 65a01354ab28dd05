"""The door of a control service: where it listens, by which certificates, and what a caller may do.

On loopback or a unix socket everybody may do everything. Beyond that callers show a certificate that an
authority of `grpc_tls.client_ca` signed, and an organizational unit (OU) in its subject is their role.
"""
