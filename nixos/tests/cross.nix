# What is built on one machine for another: programs run where they are built.
{ lib, host }:
let
  policy =
    evaluate:
    (evaluate [
      {
        networking.nftables.enable = true;
        networking.firewall.enable = false;
        services.opencode = {
          enable = true;
          instances.a = {
            directory = "/srv/a";
            networkIsolation.enable = true;
          };
        };
      }
    ]).config.environment.etc."opencode-egress/policy.json".source.buildCommand;
  runs = lib.hasInfix "bin/opencode-egress check";

  # The package, by the hands of those who would build it: what they are given is what there is of it.
  package =
    changed:
    import ../package.nix (
      {
        inherit lib;
        stdenv = lib.genAttrs [ "buildPlatform" "hostPlatform" ] (_: lib.systems.elaborate "x86_64-linux");
        rustPlatform = {
          buildRustPackage = lib.id;
          importCargoLock = _: "/nix/store/crates";
          rustLibSrc = "/nix/store/library";
          rustVendorSrc = "/nix/store/vendored";
        };
        buildPackages.rustc = {
          unwrapped = "/nix/store/build-rustc";
          override =
            { sysroot }:
            {
              type = "derivation";
              outPath = lib.head sysroot.paths;
            };
        };
        symlinkJoin = lib.id;
        bpf-linker.version = "0.10.3";
        installShellFiles = "/nix/store/hook";
      }
      // changed
    );
in
{
  "the policy is checked where the daemon can run" = {
    got = map (evaluate: runs (policy evaluate)) [
      host.evaluate
      host.cross
    ];
    expected = [
      true
      false
    ];
  };
  "the compiler is the building machine's" = {
    got = (package { }).env.OPENCODE_EGRESS_RUSTC;
    expected = "/nix/store/build-rustc/bin/rustc";
  };
  "a linker that cannot read the compiler's output is refused" = {
    got = map (version: host.throws (package { bpf-linker.version = version; }).nativeBuildInputs) [
      "0.9.15"
      "0.10.2"
      "0.10.3"
      "0.11.0"
    ];
    expected = [
      true
      true
      false
      false
    ];
  };
}
