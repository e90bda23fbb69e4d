//! Makes random cases.

mod codes;
mod operands;
mod setup;
mod values;

use iced_x86::{Code, InstructionInfoFactory};

use codes::{Kind, kind};
pub use codes::{allowed_codes, differential_codes};
use operands::Known;
use setup::{Maker, must_be_last};

use crate::draft::{Draft, Piece, Place, written};
use crate::layout::{CODE, CODE_PAGES, PAGE};
use crate::{Case, Random};

/// Makes cases; the same seed gives the same case.
#[derive(Debug)]
pub struct Generator {
    codes: Vec<(Kind, Vec<Code>)>,
}

/// How often (of 100) each kind comes, by theme of a sequence.
const THEMES: [[(Kind, u64); 7]; 6] = {
    use Kind::{Branch, Forbidden, Integer, Mmx, Sse, Text, X87};
    [
        [
            (Integer, 74),
            (Branch, 14),
            (Text, 5),
            (X87, 2),
            (Mmx, 1),
            (Sse, 3),
            (Forbidden, 1),
        ],
        [
            (Integer, 55),
            (Branch, 34),
            (Text, 4),
            (X87, 2),
            (Mmx, 1),
            (Sse, 3),
            (Forbidden, 1),
        ],
        [
            (Integer, 50),
            (Branch, 8),
            (Text, 40),
            (X87, 0),
            (Mmx, 0),
            (Sse, 1),
            (Forbidden, 1),
        ],
        [
            (Integer, 15),
            (Branch, 4),
            (Text, 1),
            (X87, 74),
            (Mmx, 1),
            (Sse, 4),
            (Forbidden, 1),
        ],
        [
            (Integer, 15),
            (Branch, 4),
            (Text, 1),
            (X87, 2),
            (Mmx, 2),
            (Sse, 75),
            (Forbidden, 1),
        ],
        [
            (Integer, 15),
            (Branch, 4),
            (Text, 1),
            (X87, 9),
            (Mmx, 60),
            (Sse, 10),
            (Forbidden, 1),
        ],
    ]
};

/// In how many of 100 memory operands an access faults.
const FAULTS_IN_SEQUENCE: u64 = 2;
const FAULTS_ALONE: u64 = 10;
const ATTEMPTS: usize = 20;

impl Default for Generator {
    fn default() -> Self {
        Self::new()
    }
}

impl Generator {
    /// Sorts the instructions.
    pub fn new() -> Self {
        let all = differential_codes();
        let kinds = THEMES[0].map(|(kind, _)| kind);
        let codes = kinds.map(|wanted| {
            let of_kind = all
                .iter()
                .copied()
                .filter(|code| kind(*code) == Some(wanted));
            (wanted, of_kind.collect())
        });
        Self {
            codes: codes.to_vec(),
        }
    }

    /// Returns a sequence of instructions of all kinds.
    pub fn sequence(&self, seed: u64) -> Draft {
        let mut random = Random::new(seed);
        let theme = random.pick(&THEMES);
        let length = 3 + random.index(22);
        let mut draft = Builder::new(seed, random, FAULTS_IN_SEQUENCE);
        for _ in 0..length {
            let code = self.pick(&mut draft.random, &theme);
            if draft.add(code) == Some(End::Closed) {
                break;
            }
        }
        draft.finish()
    }

    /// Returns a case about `code` alone, or with a few others around it.
    pub fn single(&self, code: Code, seed: u64) -> Draft {
        let random = Random::new(seed ^ (code as u64) << 48);
        let mut draft = Builder::new(seed, random, FAULTS_ALONE);
        if draft.random.chance(30) {
            let first = self.pick(&mut draft.random, &THEMES[0]);
            if !matches!(kind(first), Some(Kind::Forbidden | Kind::Branch)) {
                draft.add(first);
                if draft.closed {
                    draft.draft.pieces.clear();
                    draft.closed = false;
                }
            }
        }
        for _ in 0..ATTEMPTS {
            if draft.add(code).is_some() {
                break;
            }
        }
        for _ in 0..draft.random.below(3) {
            let next = self.pick(&mut draft.random, &THEMES[0]);
            draft.add(next);
        }
        draft.finish()
    }

    fn pick(&self, random: &mut Random, theme: &[(Kind, u64); 7]) -> Code {
        let mut left = random.below(theme.iter().map(|(_, weight)| weight).sum());
        for ((_, weight), (_, codes)) in theme.iter().zip(&self.codes) {
            if left < *weight {
                return random.pick(codes);
            }
            left -= weight;
        }
        Code::Nopd
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// Nothing may follow.
    Closed,
}

/// A draft under construction.
#[derive(Debug)]
struct Builder {
    random: Random,
    known: Known,
    faults: u64,
    factory: InstructionInfoFactory,
    draft: Draft,
    closed: bool,
}

impl Builder {
    fn new(seed: u64, mut random: Random, faults: u64) -> Self {
        let mut state = values::registers(&mut random);
        let known = Known::choose(&mut random, &mut state);
        let memory = values::memory(&mut random);
        let place = match random.below(100) {
            0 => Place::Beyond(1 + random.below(40)),
            1..8 => Place::At(CODE + PAGE - random.below(100)),
            8..20 => Place::At(CODE + CODE_PAGES * PAGE),
            _ => Place::At(CODE + 16 * random.below(200)),
        };
        Self {
            random,
            known,
            faults,
            factory: InstructionInfoFactory::new(),
            draft: Draft {
                seed,
                pieces: Vec::new(),
                place,
                state,
                memory,
            },
            closed: false,
        }
    }

    /// Adds an instruction of `code`, or nothing where its random operands make no legal one.
    fn add(&mut self, code: Code) -> Option<End> {
        if self.closed {
            return None;
        }
        let mut maker = Maker {
            random: &mut self.random,
            known: &self.known,
            faults: self.faults,
            memory: &mut self.draft.memory,
        };
        let piece = maker.piece(code)?;
        if !encodable(&piece) {
            return None;
        }
        for planned in &piece.planned {
            let written = written(&mut self.factory, &planned.instruction);
            self.known.forget(&written);
        }
        let last = &piece.planned.last()?.instruction;
        self.closed = must_be_last(last);
        self.draft.pieces.push(piece);
        Some(if self.closed { End::Closed } else { End::Open })
    }

    fn finish(self) -> Draft {
        self.draft
    }
}

fn encodable(piece: &Piece) -> bool {
    let draft = Draft {
        seed: 0,
        pieces: vec![piece.clone()],
        place: Place::At(CODE),
        state: crate::State::default(),
        memory: Vec::new(),
    };
    let case: Result<Case, _> = draft.assemble();
    case.is_ok()
}
