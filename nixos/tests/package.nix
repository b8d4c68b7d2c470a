# What the package is built from.
{ lib, host }:
let
  sources = lib.importJSON ../package-sources.json;
  inherit ((lib.importTOML ../../Cargo.toml).workspace) members;
in
{
  "every member of the workspace is among the sources" = {
    got = lib.subtractLists sources members;
    expected = [ ];
  };
  "every source is there" = {
    got = lib.filter (name: !builtins.pathExists (../.. + "/${name}")) sources;
    expected = [ ];
  };
}
