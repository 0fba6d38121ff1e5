//! Peers without a certificate, and peers that do not even try to look like one.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use futures::StreamExt;
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::multiaddr::Protocol as Part;
use libp2p::request_response::{Behaviour, Codec, Config, Event, Message, ProtocolSupport};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, Swarm, noise, tcp, yamux};
use remora_net::identity::Identity;
use remora_net::peer::{from_wire, to_wire};
use remora_net::protocol::Protocol;
use remora_net::request::RequestError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::hosts::{Host, PATIENCE, befriend, friends};

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_may_join_and_nothing_else() {
    let (member, stranger) = (Host::start().await, Host::start().await);
    let (id, at) = (member.id(), member.addresses.clone());
    for protocol in [Protocol::Keeper, Protocol::Blocks, Protocol::Registry, Protocol::Log] {
        let refused = stranger.net.request_at(&at, Some(id), protocol, Bytes::new(), PATIENCE).await;
        assert!(matches!(refused, Err(RequestError::NotMember { .. })), "{protocol}: {refused:?}");
    }
    let (from, answer) =
        stranger.net.request_at(&at, Some(id), Protocol::Join, "please".into(), PATIENCE).await.unwrap();
    assert_eq!((from, answer), (id, Bytes::from_static(b"welcome")));
    assert!(member.rules.members.lock().contains(&stranger.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_at_an_address_is_named_and_must_be_the_expected_one() {
    let (member, stranger) = (Host::start().await, Host::start().await);
    let at = member.addresses.clone();
    let other = Identity::generate().peer_id();
    let wrong = stranger.net.request_at(&at, Some(other), Protocol::Join, "hi".into(), PATIENCE).await;
    assert!(
        matches!(&wrong, Err(RequestError::WrongPeer { expected, found }) if *expected == other && *found == member.id().to_string()),
        "{wrong:?}"
    );
    // Without an expectation whoever is there will do; a dead address before it is passed over.
    let dead: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let some = [dead.clone(), at[0].clone()];
    let (from, _) =
        stranger.net.request_at(&some, None, Protocol::Join, "hi".into(), PATIENCE).await.unwrap();
    assert_eq!(from, member.id());
    // An address that names its owner is as good as naming the owner.
    let named = at[0].clone().with(Part::P2p(to_wire(&other).unwrap()));
    let wrong = stranger.net.request_at(&[named], None, Protocol::Join, "hi".into(), PATIENCE).await;
    assert!(matches!(wrong, Err(RequestError::WrongPeer { .. })), "{wrong:?}");
    let nobody = stranger.net.request_at(&[dead], None, Protocol::Join, "hi".into(), PATIENCE).await;
    assert!(matches!(nobody, Err(RequestError::NotConnected { .. })), "{nobody:?}");
    let nowhere = stranger.net.request_at(&[], None, Protocol::Join, "hi".into(), PATIENCE).await;
    assert!(matches!(nowhere, Err(RequestError::NotConnected { .. })), "{nowhere:?}");
}

fn socket(address: &Multiaddr) -> SocketAddr {
    let mut parts = address.iter();
    match (parts.next(), parts.next()) {
        (Some(Part::Ip4(ip)), Some(Part::Tcp(port))) => SocketAddr::from((ip, port)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_socket_harms_nobody() {
    let hosts = friends(2).await;
    let target = socket(&hosts[0].addresses[0]);
    for round in 0..40u8 {
        let mut stream = tokio::net::TcpStream::connect(target).await.unwrap();
        let garbage: Vec<u8> =
            (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0] ^ round).collect();
        // The other side may hang up in the middle, which is what it should do.
        let _ = stream.write_all(&garbage).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "the connection is closed");
    }
    assert_eq!(hosts[1].ask(&hosts[0], Protocol::Keeper, "alive").await, "alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_keep_no_member_out() {
    let mut hosts = vec![Host::start().await, Host::start().await];
    let target = socket(&hosts[0].addresses[0]);
    let mut silent = Vec::new();
    for _ in 0..200 {
        // All of 127.0.0.0/8 is this machine: the attacker has another address than the member.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(target).await.unwrap());
    }
    befriend(&mut hosts).await;
    assert_eq!(hosts[1].ask(&hosts[0], Protocol::Keeper, "alive").await, "alive");
}

/// Speaks any protocol, writes what it is given as it is, and reads whatever comes.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Protocol = &'static str;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &&'static str, _: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        Ok(Vec::new())
    }

    async fn read_response<T>(&mut self, _: &&'static str, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    async fn write_request<T>(&mut self, _: &&'static str, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }

    async fn write_response<T>(&mut self, _: &&'static str, _: &mut T, _: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        Ok(())
    }
}

fn raw_swarm(protocol: Protocol) -> Swarm<Behaviour<Raw>> {
    libp2p::SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| Behaviour::new([(protocol.id(), ProtocolSupport::Full)], Config::default()))
        .unwrap()
        .build()
}

/// Sends each of `frames` over the connection of a swarm with raw streams, and returns what came back for each.
async fn send_raw(
    host: &Host,
    protocol: Protocol,
    frames: &[Vec<u8>],
    is_member: bool,
) -> Vec<Option<Vec<u8>>> {
    let mut swarm = raw_swarm(protocol);
    let me = from_wire(swarm.local_peer_id()).unwrap();
    if is_member {
        host.rules.members.lock().insert(me);
    }
    let to = to_wire(&host.id()).unwrap();
    let mut answers = Vec::new();
    for frame in frames {
        swarm.behaviour_mut().send_request_with_addresses(&to, frame.clone(), host.addresses.clone());
        let answer = async {
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::Behaviour(Event::Message {
                        message: Message::Response { response, .. },
                        ..
                    }) => {
                        return Some(response);
                    }
                    SwarmEvent::Behaviour(Event::OutboundFailure { .. }) => return None,
                    _ => {}
                }
            }
        };
        answers.push(tokio::time::timeout(PATIENCE, answer).await.expect("the stream ends"));
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_frame_ends_its_stream_and_nothing_else() {
    let hosts = friends(2).await;
    let over = u32::try_from(Protocol::Keeper.request_bytes_max() + 1).unwrap();
    let good = [3u32.to_be_bytes().as_slice(), b"hey"].concat();
    let frames = [u32::MAX.to_be_bytes().to_vec(), over.to_be_bytes().to_vec(), vec![0, 0], Vec::new(), good];
    let answers = send_raw(&hosts[0], Protocol::Keeper, &frames, true).await;
    for answer in &answers[..4] {
        assert!(answer.as_ref().is_none_or(Vec::is_empty), "{answer:?}");
    }
    assert_eq!(answers[4].as_deref(), Some(b"\0\0\0\x03\0hey".as_slice()), "the same connection still works");
    assert_eq!(hosts[1].ask(&hosts[0], Protocol::Keeper, "alive").await, "alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_speaks_the_protocols_of_members_gets_no_stream() {
    let hosts = friends(2).await;
    let good = [3u32.to_be_bytes().as_slice(), b"hey"].concat();
    assert_eq!(send_raw(&hosts[0], Protocol::Keeper, std::slice::from_ref(&good), false).await, [None]);
    let joined = send_raw(&hosts[0], Protocol::Join, &[good], false).await;
    assert_eq!(joined[0].as_deref(), Some(b"\0\0\0\x03\0hey".as_slice()));
}
