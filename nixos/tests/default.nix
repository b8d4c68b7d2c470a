# [ ] when all is well:
#
#   NIXPKGS=… nix-instantiate --eval --strict --json nixos/tests
import ./checks.nix { lib = import ../lib.nix; }
