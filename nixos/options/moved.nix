# Options that albertov/opencode-nix has, for a message that says where they are here.
{ lib, ... }:
let
  gone = lib.mkOption {
    type = lib.types.nullOr lib.types.str;
    default = null;
    visible = false;
    description = "The model is `config.model`, with its provider.";
  };
in
{
  options.model = gone;
  options.provider = gone;
}
