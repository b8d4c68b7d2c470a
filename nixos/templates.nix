# The templates of dist/, as JSON: name of the file -> text.
#
#   NIXPKGS=… nix-instantiate --eval --strict --json nixos/templates.nix
import ./keys/template.nix { lib = import ./lib.nix; }
