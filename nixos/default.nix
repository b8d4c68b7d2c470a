# The NixOS module `services.opencode`: opencode servers, one hardened unit each, and what they may reach.
{
  imports = [
    ./options
    ./assertions.nix
    ./moved.nix
    ./assertions-paths.nix
    ./warnings.nix
    ./units
    ./users.nix
    ./egress
    ./keys
  ];
}
