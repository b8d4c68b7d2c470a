# Hosts with opencode servers: keep the one that is closest to yours, and remove the others.
#
# Put the hardware-configuration.nix of your machine beside this file, then: nixos-rebuild switch --flake .#one
{
  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # Where you have this template from.
    opencode-egress.url = "github:OWNER/opencode-egress";
    opencode-egress.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { nixpkgs, opencode-egress, ... }:
    let
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system}.extend opencode-egress.overlays.default;
      host =
        servers:
        nixpkgs.lib.nixosSystem {
          modules = [
            {
              nixpkgs.hostPlatform = system;
              nixpkgs.overlays = [ opencode-egress.overlays.default ];
            }
            opencode-egress.nixosModules.default
            ./hardware-configuration.nix
            servers
          ];
        };
    in
    {
      nixosConfigurations = {
        # One server.
        one = host ./one.nix;
        # Ten from a list, with what they have in common.
        ten = host ./ten.nix;
        # One with many agents, skills and MCP servers.
        agents = host ./agents;
      };

      # `nix run`: opencode for a terminal, with a configuration of its own.
      packages.${system}.default = pkgs.lib.opencode.wrapOpencode {
        config = {
          model = "anthropic/claude-sonnet-4-5";
          share = "disabled";
        };
      };
    };
}
