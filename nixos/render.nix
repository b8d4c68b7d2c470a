# What hosts become: name of the host -> path of a file -> its text.
#
#   NIXPKGS=… nix-instantiate --eval --strict --json nixos/render.nix
let
  lib = import ./lib.nix;
in
import ./stub/render.nix {
  inherit lib;
  hosts = import ./hosts.nix { inherit lib; };
}
