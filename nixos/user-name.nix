# The user of an instance, unless it says otherwise. Linux takes names of at most 31 bytes.
{ lib }:
name:
let
  plain = "opencode-${name}";
  digest = builtins.substring 0 8 (builtins.hashString "sha256" name);
in
if lib.stringLength plain <= 31 then plain else "${lib.substring 0 22 plain}-${digest}"
