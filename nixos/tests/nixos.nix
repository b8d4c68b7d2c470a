# A host of the whole NixOS, as the stub is one without: modules -> what they become. `nixpkgs` is a checkout.
{
  nixpkgs,
  localSystem ? "x86_64-linux",
  crossSystem ? null,
}:
let
  # opencode and the daemon are named as in the stub's store; they are built in other checks.
  named =
    pkgs: _: { inherit (import ../stub/pkgs.nix { inherit (pkgs) lib; }) opencode opencode-egress; };
  pkgs = import nixpkgs {
    inherit localSystem crossSystem;
    config = { };
    overlays = [ named ];
  };
in
modules:
import (nixpkgs + "/nixos/lib/eval-config.nix") {
  system = null;
  inherit pkgs;
  modules = [
    ../default.nix
    {
      # What every host has to say.
      boot.loader.grub.enable = false;
      fileSystems."/" = {
        device = "/dev/disk/by-label/root";
        fsType = "ext4";
      };
      system.stateVersion = pkgs.lib.trivial.release;
    }
  ]
  ++ modules;
}
