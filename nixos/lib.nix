# nixpkgs' library, from the environment variable NIXPKGS: a checkout of nixpkgs, or of its lib alone.
let
  path = builtins.getEnv "NIXPKGS";
in
if path == "" then
  throw "Set NIXPKGS to a checkout of nixpkgs, or of https://github.com/nix-community/nixpkgs.lib."
else
  import (path + "/lib")
