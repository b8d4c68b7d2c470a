# [ ] when all is well:
#
#   NIXPKGS=… nix-instantiate --eval --strict --json nixos/tests
#
# Where NIXPKGS is the whole of nixpkgs, the hosts are NixOS'; where it is its lib alone, they are those of ../stub.
let
  nixpkgs = builtins.getEnv "NIXPKGS";
  lib = import ../lib.nix;
  whole = builtins.pathExists (nixpkgs + "/nixos/lib/eval-config.nix");
in
import ./checks.nix (
  { inherit lib; }
  // lib.optionalAttrs whole {
    evaluate = import ./nixos.nix { inherit nixpkgs; };
    cross = import ./nixos.nix {
      inherit nixpkgs;
      crossSystem = "aarch64-linux";
    };
  }
)
