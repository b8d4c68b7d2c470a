{
  description = "Confines headless opencode servers by eBPF programs on their units' cgroups";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      eachSystem =
        perSystem:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: perSystem (nixpkgs.legacyPackages.${system}.extend self.overlays.default));
    in
    {
      overlays.default = import ./nixos/overlay.nix;

      nixosModules = {
        default = self.nixosModules.opencode;
        opencode = ./nixos;
      };

      # Without packages: mkConfig takes no configuration that names one. The overlay's does.
      lib.opencode = import ./nixos/opencode-json { inherit lib; };

      packages = eachSystem (pkgs: {
        default = pkgs.opencode-egress;
        inherit (pkgs) opencode-egress;
      });

      checks = eachSystem (
        pkgs:
        let
          # Succeeds when there is nothing in the list.
          evaluation =
            name: failures:
            pkgs.runCommand name { failures = builtins.toJSON failures; } ''
              [ "$failures" = "[]" ] || { echo "$failures" >&2; exit 1; }
              touch $out
            '';
        in
        {
          inherit (pkgs) opencode-egress;
          opencode-json = evaluation "opencode-json" (
            import ./nixos/tests/opencode-json/checks.nix { inherit lib; }
          );
          module = evaluation "module" (import ./nixos/tests/checks.nix { inherit lib; });
        }
        // lib.optionalAttrs (pkgs.stdenv.hostPlatform.system == "x86_64-linux") (
          import ./vm-tests/nixos-test.nix {
            inherit pkgs;
            module = self.nixosModules.default;
          }
        )
      );

      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ pkgs.opencode-egress ];
          packages = [
            pkgs.clippy
            pkgs.rustfmt
          ];
          OPENCODE_EGRESS_RUSTC = lib.getExe' pkgs.opencode-egress.compiler "rustc";
        };
      });

      formatter = eachSystem (pkgs: pkgs.nixfmt-tree);
    };
}
