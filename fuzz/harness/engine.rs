//! Bytes as a sequence of packets, time steps and commands for an engine, watched by the model in [`super::world`].

use super::ops::{Bytes, Op};
use super::world::World;

const MAX_OPS: usize = 200;

pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut world = World::new(bytes.u8());
    for _ in 0..MAX_OPS {
        if bytes.0.is_empty() {
            break;
        }
        world.step(&Op::decode(&mut bytes));
    }
    world.finish();
}
