"""Certificates of the doors and of the cluster, from PEM files to what gRPC takes.

Two kinds that have nothing to do with each other. A router's doors show clients an ordinary server certificate. Inside,
workers, routers and the controller show each other one that the cluster's own authority has signed: whoever has none is
not answered. All processes may share a single one, so it is made out to `CLUSTER_NAME` and not to a host.

The KV blocks themselves do not travel over these connections: UCX has no TLS.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from diptych.config import RouterConfig, WorkerConfig

CLUSTER_NAME = "diptych-cluster"  # the subject alternative name that the cluster's certificates have


@dataclass(frozen=True, slots=True)
class ClusterTls:
    """Mutual TLS between the processes of one cluster. PEM."""

    certificate: bytes
    key: bytes
    authority: bytes

    def server(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.authority, require_client_auth=True)

    def channel(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


def cluster_tls(config: WorkerConfig | RouterConfig) -> ClusterTls | None:
    """What a process shows the others; None if its configuration names no files.

    Raises:
        ValueError: a file is missing or not PEM.
    """
    if not config.cluster_cert_file:
        return None
    check_pair(config.cluster_cert_file, config.cluster_key_file)
    return ClusterTls(
        read_pem(config.cluster_cert_file), read_pem(config.cluster_key_file), read_pem(config.cluster_ca_file)
    )


def door_credentials(cert_file: str, key_file: str) -> grpc.ServerCredentials | None:
    """Of a gRPC door that clients reach; None if no file is named.

    Raises:
        ValueError: a file is missing or not PEM.
    """
    if not cert_file:
        return None
    check_pair(cert_file, key_file)
    return grpc.ssl_server_credentials([(read_pem(key_file), read_pem(cert_file))])


def check_pair(cert_file: str, key_file: str) -> None:
    """
    Raises:
        ValueError: one of the files cannot be used, or they do not belong together.
    """
    for path in (cert_file, key_file):
        read_pem(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file)
    except ssl.SSLError as error:
        raise ValueError(f"{cert_file!r} and {key_file!r} are no certificate and its key: {error.reason}") from None


def read_pem(path: str) -> bytes:
    """
    Raises:
        ValueError: it cannot be read, or is not PEM.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path!r} cannot be read: {error.strerror}; name a PEM file") from None
    if b"-----BEGIN " not in content:
        raise ValueError(f"{path!r} is not a PEM file: it has no BEGIN line")
    return content
