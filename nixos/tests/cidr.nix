# Networks and addresses, beside those of opencode-egress/src/policy/mod.rs.
{ lib, host }:
let
  inherit (import ../cidr.nix { inherit lib; }) parseAddress parseCidr;
  network =
    text:
    let
      result = parseCidr text;
    in
    result.value.canonical or result.problem;
  address =
    text:
    let
      result = parseAddress text;
    in
    result.value.canonical or "no";
  is = got: expected: { inherit got expected; };
  noNetwork =
    text:
    "`${text}` is no network; write an address and a prefix length, as in `10.10.0.0/16` or `2001:db8::/32`";
in
lib.mapAttrs' (text: expected: lib.nameValuePair "network ${text}" (is (network text) expected)) {
  "10.10.0.0/16" = "10.10.0.0/16";
  "0.0.0.0/0" = "0.0.0.0/0";
  "255.255.255.255/32" = "255.255.255.255/32";
  "10.128.0.0/9" = "10.128.0.0/9";
  "::/0" = "::/0";
  "2001:DB8::/32" = "2001:db8::/32";
  "2001:db8:0:0:8000::/65" = "2001:db8:0:0:8000::/65";
  "::1/128" = "0:0:0:0:0:0:0:1/128";
  "::ffff:192.0.2.0/120" = "192.0.2.0/24";
  "::ffff:0:0/96" = "0.0.0.0/0";
  "::/95" = "::/95";
  "64:ff9b::192.0.2.0/120" = "64:ff9b:0:0:0:0:c000:200/120";
  "10.10.0.1/16" = "`10.10.0.1/16` has host bits set; write `10.10.0.0/16`";
  "10.64.0.0/9" = "`10.64.0.0/9` has host bits set; write `10.0.0.0/9`";
  "2001:db8::1/32" = "`2001:db8::1/32` has host bits set; write `2001:db8::/32`";
  "10.10.0.1" = "`10.10.0.1` has no prefix length; write `10.10.0.1/32` for this one address";
  "::1" = "`::1` has no prefix length; write `::1/128` for this one address";
}
// lib.listToAttrs (
  map (text: lib.nameValuePair "network ${text}" (is (network text) (noNetwork text))) [
    ""
    "/"
    "example.com"
    "10.0.0.0/33"
    "10.0.0.0/-1"
    "10.0.0.0/+8"
    "10.0.0.0/"
    "10.0.0.0/8/8"
    "10.0.0/8"
    "10.0.0.0.0/8"
    "10.010.0.0/16"
    "256.0.0.0/8"
    "::/129"
    ":::/8"
    "1::2::3/128"
    "1:2:3:4:5:6:7/128"
    "1:2:3:4:5:6:7:8:9/128"
    "1:2:3:4::5:6:7:8/128"
    "12345::/16"
    "g::/16"
    "1.2.3.4::/32"
    "fe80::%eth0/64"
    " 10.0.0.0/8"
  ]
)
// lib.mapAttrs' (text: expected: lib.nameValuePair "address ${text}" (is (address text) expected)) {
  "127.0.0.1" = "127.0.0.1";
  "::" = "::";
  "1::" = "1::";
  "1:2:3:4:5:6:7::" = "1:2:3:4:5:6:7:0";
  "::ffff:127.0.0.1" = "127.0.0.1";
  "localhost" = "no";
  "127.1" = "no";
  "[::1]" = "no";
  "127.0.0.1/32" = "no";
}
