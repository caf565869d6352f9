"""Starts and stops `prism serve` on free ports. Waits for events, never for time to pass."""

import re
import signal
import subprocess
import tempfile
import threading
import urllib.request
from pathlib import Path

READY_SECONDS = 60
END_SECONDS = 60

CONFIG = """
namespaces:
  - {name: keyvalue, client_api: keyvalue}
  - {name: cache, client_api: keyvalue, durability: memory}
  - {name: ledger, client_api: keyvalue, durability: strong}
  # Room for one message at a time, so that a second one is refused while the first waits for the disk.
  - {name: narrow, client_api: keyvalue, max_message_size: 1MiB, in_flight_bytes_max: 1MiB}
"""


class Serving:
    """One running server and its data directory."""

    def __init__(self, prism, folder, config=CONFIG, arguments=(), secured=False):
        self.folder = Path(folder)
        self.prism = prism
        # The certificate that its clients have to trust; nothing where it speaks in clear.
        self.authority = self.issue() if secured else None
        self.arguments = list(arguments)
        if config is not None:
            file = self.folder / "prism.yaml"
            file.write_text(config)
            self.arguments += ["--config", str(file)]
        if secured:
            self.arguments += ["--tls-cert", str(self.authority), "--tls-key", str(self.folder / "key.pem")]
        self.start()

    def issue(self):
        """Makes a certificate for this machine that stands for itself, and its key."""
        certificate = self.folder / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]
        command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command += ["-keyout", str(self.folder / "key.pem"), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
        return certificate

    def start(self):
        """Starts it, and returns when it says that it is ready."""
        command = [self.prism, "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        command += ["--data-dir", str(self.folder / "data"), "--log-level", "warn"]
        self.log = open(self.folder / "stderr.log", "ab")
        self.process = subprocess.Popen(command + self.arguments, stdout=subprocess.PIPE, stderr=self.log, text=True)
        screen = []
        watchdog = threading.Timer(READY_SECONDS, self.process.kill)
        watchdog.start()
        for line in self.process.stdout:
            screen.append(line)
            if line.startswith("Ready after"):
                break
        watchdog.cancel()
        self.screen = "".join(screen)
        if not screen or not screen[-1].startswith("Ready after"):
            log = (self.folder / "stderr.log").read_text()
            raise RuntimeError(f"prism serve did not come up: {self.screen}{log}")
        self.endpoint = re.search(r"gRPC\s+(\S+)", self.screen).group(1)
        self.admin = re.search(r"admin\s+(http://\S+)", self.screen).group(1)

    @property
    def url(self):
        """Where it is called over HTTP."""
        return f"{'https' if self.authority else 'http'}://{self.endpoint}"

    def get(self, path):
        """The body of an answer of the admin port."""
        with urllib.request.urlopen(self.admin + path, timeout=10) as answer:
            return answer.read().decode()

    def metric(self, name):
        """The sum of a metric over all its labels."""
        lines = [line for line in self.get("/metrics").splitlines() if re.match(name + r"[{ ]", line)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def runs(self):
        """Whether it is still there."""
        return self.process.poll() is None

    def terminate(self):
        """Sends SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        """Kills it as a power cut would."""
        self.process.kill()
        self.wait()

    def wait(self):
        """Its exit code, once it has ended."""
        code = self.process.wait(END_SECONDS)
        self.process.stdout.close()
        self.log.close()
        return code

    def stop(self):
        """Ends it in order, and returns the exit code."""
        if self.runs():
            self.terminate()
        return self.wait()


class Folder(tempfile.TemporaryDirectory):
    """A data directory's parent, on the file system of the build folder (a tmpfs has no O_DIRECT)."""

    def __init__(self, beside):
        super().__init__(prefix="prism-clients-", dir=beside)
