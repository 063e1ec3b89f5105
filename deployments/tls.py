"""Certificates: what Pliant shows to clients, and read again when they are renewed."""

import logging
import ssl
from pathlib import Path

from deployments.config import ConfigError, TlsConfig

logger = logging.getLogger("ray.serve")


class Certificate:
    """A certificate and its key, as the files are now."""

    def __init__(self, tls: TlsConfig) -> None:
        self._tls = tls
        self._stamps = self._look()
        self.context = self._made()

    def renew(self) -> bool:
        """Take changed files for connections to come; whether there were any. What cannot be read changes nothing."""
        try:
            stamps = self._look()
            if stamps == self._stamps:
                return False
            self._made()  # a pair that does not fit is found out here, not in the context that serves
            self.context.load_cert_chain(self._tls.cert, self._tls.key)
        except (OSError, ssl.SSLError, ConfigError) as error:
            logger.warning("router: the renewed certificate cannot be used, so the one before holds: %s", error)
            return False
        self._stamps = stamps
        logger.info("router: certificate read anew from %s", self._tls.cert)
        return True

    def pair(self) -> tuple[bytes, bytes]:
        """Key and certificate, PEM."""
        return Path(self._tls.key).read_bytes(), Path(self._tls.cert).read_bytes()

    def authority(self) -> bytes | None:
        """Who signs clients' certificates, PEM; None where they need none."""
        return Path(self._tls.clients).read_bytes() if self._tls.clients is not None else None

    def _look(self) -> tuple[int, ...]:
        files = [self._tls.cert, self._tls.key]
        try:
            return tuple(Path(file).stat().st_mtime_ns for file in files)
        except OSError as error:
            raise ConfigError(f"http: tls: {error.filename}: {error.strerror}") from error

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._tls.cert, self._tls.key)
            if self._tls.clients is not None:
                context.load_verify_locations(self._tls.clients)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"http: tls: {self._tls.cert}, {self._tls.key}: {error}") from error
        return context
