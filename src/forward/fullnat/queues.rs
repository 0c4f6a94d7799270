//! Which flows of a lane could give up their port, in the order of their last packet. Intrusive lists, one link a flow,
//! so that a flow goes to the tail and out of the middle in constant time.

/// The lists of a lane, the one to be asked first in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    Finished,
    HalfOpen,
}

impl Queue {
    pub const COUNT: usize = 2;
}

/// Numbers of flows, plus one; 0: none. Memory that is all zero is not touched before it is used.
type Link = [u32; 3];
const PREV: usize = 0;
const NEXT: usize = 1;
/// The queue that it is in, plus one.
const QUEUE: usize = 2;

/// Head and tail of each [`Queue`], as links name flows.
pub(super) type Ends = [[u32; 2]; Queue::COUNT];
const HEAD: usize = 0;
const TAIL: usize = 1;

/// By the number of the flow. Set aside when the first flow comes.
pub(super) struct Queues {
    links: Vec<Link>,
    flows: usize,
}

impl Queues {
    /// For flows with numbers below `flows`.
    pub fn new(flows: usize) -> Queues {
        Queues { links: Vec::new(), flows }
    }

    /// Puts a flow at the tail of a queue, wherever it was before; `None`: in none.
    pub fn place(&mut self, ends: &mut Ends, flow: u32, queue: Option<Queue>) {
        self.unlink(ends, flow);
        let Some(queue) = queue else { return };
        if self.links.is_empty() {
            self.links = vec![[0; 3]; self.flows];
        }
        let Some(at) = self.links.get_mut(flow as usize) else { return };
        let name = flow + 1;
        let ends = &mut ends[queue as usize];
        *at = [ends[TAIL], 0, queue as u32 + 1];
        match ends[TAIL] {
            0 => ends[HEAD] = name,
            tail => self.links[tail as usize - 1][NEXT] = name,
        }
        ends[TAIL] = name;
    }

    fn unlink(&mut self, ends: &mut Ends, flow: u32) {
        let Some([prev, next, queue]) = self.links.get(flow as usize).copied().filter(|link| link[QUEUE] != 0) else {
            return;
        };
        let ends = &mut ends[queue as usize - 1];
        match prev {
            0 => ends[HEAD] = next,
            prev => self.links[prev as usize - 1][NEXT] = next,
        }
        match next {
            0 => ends[TAIL] = prev,
            next => self.links[next as usize - 1][PREV] = prev,
        }
        self.links[flow as usize] = [0; 3];
    }

    /// The flow at the head of a queue.
    pub fn head(ends: &Ends, queue: Queue) -> Option<u32> {
        ends[queue as usize][HEAD].checked_sub(1)
    }

    /// All flows of a queue, the oldest first.
    pub fn list(&self, ends: &Ends, queue: Queue) -> impl Iterator<Item = u32> + '_ {
        let next = |flow: &u32| self.links[*flow as usize][NEXT].checked_sub(1);
        std::iter::successors(Queues::head(ends, queue), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_go_to_the_tail_and_out_of_the_middle() {
        let mut queues = Queues::new(8);
        let mut ends = Ends::default();
        for flow in [0, 7, 3, 5] {
            queues.place(&mut ends, flow, Some(Queue::HalfOpen));
        }
        queues.place(&mut ends, 7, Some(Queue::Finished));
        queues.place(&mut ends, 0, Some(Queue::HalfOpen));
        let list = |queues: &Queues, ends: &Ends, queue| queues.list(ends, queue).collect::<Vec<_>>();
        assert_eq!(list(&queues, &ends, Queue::HalfOpen), [3, 5, 0]);
        assert_eq!(list(&queues, &ends, Queue::Finished), [7]);
        for flow in [5, 0, 3, 7, 3] {
            queues.place(&mut ends, flow, None);
        }
        assert_eq!(ends, Ends::default());
        queues.place(&mut ends, 99, Some(Queue::HalfOpen));
        assert_eq!(ends, Ends::default(), "it has no link");
    }
}
