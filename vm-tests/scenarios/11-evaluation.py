# host: none
"""What is wrong is refused when the host is evaluated; packages and the wrapper are there on both systems.
No machine: the module's and opencode.json's evaluation tests, on nixpkgs' library. Among them: isolation without nftables, and beside
`networking.firewall`; the overlay's package, `mkConfig` and `wrapOpencode`, and the flake's outputs, on x86_64-linux and aarch64-linux."""

import os
import shutil
import subprocess

if not os.environ.get("NIXPKGS"):
    skip("NIXPKGS does not name a nixpkgs, or its lib")
if not shutil.which("nix-instantiate"):
    skip("there is no nix-instantiate; Debian has it in nix-bin")

# What must be among the cases, so that it cannot go unseen.
CASES = {
    "nixos/tests/assertions.nix": {
        "without nftables",
        "with a firewall",
        "with a firewall and without nftables, but no isolation",
    },
    "nixos/tests/opencode-json/overlay.nix": {
        f"{case} on {system}"
        for case in ["the package", "mkConfig", "wrapOpencode", "the rest of lib", "the flake's outputs"]
        for system in ["x86_64-linux", "aarch64-linux"]
    },
}


def evaluate(expression):
    command = ["nix-instantiate", "--eval", "--strict", "--json", "--expr", expression]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


with subtest("the cases are there"):
    for path, wanted in CASES.items():
        host = "host = import ./nixos/tests/host.nix { inherit lib; };" if "assertions" in path else ""
        cases = evaluate(
            f"let lib = import ./nixos/lib.nix; in builtins.attrNames (import ./{path} {{ inherit lib; {host} }})"
        )
        assert wanted <= set(cases), wanted - set(cases)

with subtest("none fails"):
    # The module's on stubs: on the whole of NixOS they take minutes, and are for `cargo xtask test` and the flake's checks.
    for path in ["nixos/tests", "nixos/tests/opencode-json"]:
        failures = evaluate(f"import ./{path}/checks.nix {{ lib = import ./nixos/lib.nix; }}")
        assert failures == [], failures
