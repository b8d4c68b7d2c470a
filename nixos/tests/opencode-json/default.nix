# [ ] when all is well:
#
#   NIXPKGS=… nix-instantiate --eval --strict --json nixos/tests/opencode-json
import ./checks.nix { lib = import ../../lib.nix; }
