# The options of an instance that say where it may connect, as table.nix has the others.
let
  inherit (import ./kinds.nix)
    flag
    networks
    on
    ;
in
{
  "networkIsolation.enable" = flag;
  "networkIsolation.errno" = {
    default = "EPERM";
    first = "ECONNREFUSED";
    second = "ENETUNREACH";
    bad = [
      "EACCES"
      "econnrefused"
      111
    ];
  };
  "networkIsolation.tellAgent" = on;
  "networkIsolation.failFast" = on;
  "networkIsolation.mode" = {
    default = "enforce";
    first = "audit";
    second = "enforce";
    bad = [
      "off"
      false
    ];
  };
  "networkIsolation.ownLoopback" = {
    default = true;
    first = false;
    second = true;
    bad = [
      "own"
      1
    ];
  };
  "networkIsolation.outboundAllowCidrs" = networks;
  "networkIsolation.outboundDenyCidrs" = networks;
  "networkIsolation.outboundAllowNames" = {
    default = [ ];
    first = [ "api.example.org" ];
    second = [
      "*.example.net"
      "bücher.example"
      "API.Example.ORG."
      "_a.example.org"
    ];
    bad = [
      "api.example.org"
      [ "203.0.113.9" ]
      [ "2001:db8::1" ]
      [ "10.0.0.0/8" ]
      [ "https://api.example.org/" ]
      [ "github.com:22" ]
      [ "*" ]
      [ "api.*.org" ]
      [ "a*.example.org" ]
      [ "a..example.org" ]
      [ "my api.example.org" ]
      [ "1.2.3" ]
      [ "localhost" ]
      [ "api" ]
      [ "" ]
    ];
  };
  "networkIsolation.presets" = {
    default = [ ];
    first = [ "npm" ];
    second = [
      "anthropic"
      "npm"
    ];
    bad = [
      "npm"
      [ "npn" ]
      [ "" ]
    ];
  };
  "networkIsolation.outboundAllow" = {
    default = [ ];
    first = [
      {
        cidr = null;
        name = "*.example.org";
        protocol = "any";
        ports = [ ];
        tls = false;
        private = true;
      }
    ];
    second = [
      {
        cidr = "192.0.2.0/24";
        name = null;
        tls = null;
        private = false;
        protocol = "tcp";
        ports = [
          "443"
          "8000-8100"
        ];
      }
    ];
    bad = [
      [ "10.0.0.0/8" ]
      [ { cidr = "10.0.0.1/8"; } ]
      [ { cidr = "example.org"; } ]
      [ { name = "10.0.0.0/8"; } ]
      [
        {
          name = "example.org";
          private = "yes";
        }
      ]
      [
        {
          name = "example.org";
          tls = "yes";
        }
      ]
      [
        {
          cidr = "10.0.0.0/8";
          protocol = "sctp";
        }
      ]
      [
        {
          cidr = "10.0.0.0/8";
          ports = [ 0 ];
        }
      ]
      [
        {
          cidr = "10.0.0.0/8";
          ports = [ "8100-8000" ];
        }
      ]
      [
        {
          cidr = "10.0.0.0/8";
          port = 1;
        }
      ]
    ];
  };
}
